"""One self-contained HTML page about a run: its numbers, its curves and what the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from ..codecs.text import Text
from ..whole import put
from .curves import Chart, legend, svg
from .frames import Frame
from .terminal import Painter, colour

STYLE = """
:root { --back: #fdfdfc; --ink: #1d1f21; --soft: #6b7075; --line: #dcdfe2; --card: #f4f5f6;
  --c0: #2166ac; --c1: #c2571a; --c2: #2e8b57; --c3: #8e44ad; --c4: #b8860b; --c5: #708090; }
@media (prefers-color-scheme: dark) { :root { --back: #16181a; --ink: #e6e7e8; --soft: #9aa0a6; --line: #33383d;
  --card: #202326; --c0: #6ab0f3; --c1: #f2995c; --c2: #66c796; --c3: #c39bd3; --c4: #e2bf55; --c5: #aab7c4; } }
body { background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 46rem; padding: 2rem 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; font-weight: 500; margin: 1rem 0 .3rem; } figure { margin: 0; overflow-x: auto; }
@media (max-width: 40rem) { figure svg { min-width: 36rem; } }
p.lead, .legend, figcaption, footer { color: var(--soft); }
table { border-collapse: collapse; width: 100%; } th, td { border-bottom: 1px solid var(--line); padding: .35rem .5rem;
  text-align: right; } th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
pre { background: var(--card); border-radius: .4rem; overflow-x: auto; padding: .8rem 1rem; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); } svg polyline { fill: none; stroke-width: 1.6; } svg .level { stroke-dasharray: 5 4; }
.key { display: inline-block; margin-right: 1.2em; } .key::before { content: "\\25A0\\00A0"; }
.written { font-weight: 600; }
""" + "".join(
    f"svg .c{i} {{ stroke: var(--c{i}); }} svg .dot.c{i} {{ fill: var(--c{i}); }} "
    f".key.c{i}::before {{ color: var(--c{i}); }}\n"
    for i in range(6)
)


@dataclass(frozen=True)
class Sample:
    """A text whose blanks a model filled, as marked-up HTML, with what stood there."""

    title: str
    html: str
    truth: str = ""


@dataclass(frozen=True)
class Report:
    """What the page says, from top to bottom."""

    title: str
    lead: str
    head: Sequence[str]  # of the table of figures
    figures: Sequence[Sequence[str]]
    charts: Sequence[Chart] = ()
    samples: Sequence[Sample] = ()
    commands: Sequence[str] = field(default_factory=list)


def marked(frame: Frame, painter: Painter, text: Text, row: int = 0) -> str:
    """A row as HTML: what was written is bold and underlined in the colour of its probability."""
    parts = []
    for at, piece in enumerate(text.pieces(frame.tokens[row])):
        p = painter.sure[row].get(at) if painter.sure else None
        said = escape(piece)
        if p is not None:
            style = f"border-bottom: 3px solid {colour(p)}"
            said = f'<span class="written" style="{style}" title="probability {p:.2f}">{said}</span>'
        parts.append(said)
    return "".join(parts)


def document(title: str, body: str, style: str = "") -> str:
    """A whole HTML document that needs nothing else: `body` is markup, `style` CSS beside STYLE."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )


def page(report: Report) -> str:
    """The report as one HTML document that needs nothing else."""
    row = "<tr>{}</tr>".format
    head = row("".join(f"<th>{escape(cell)}</th>" for cell in report.head))
    rows = "".join(row("".join(f"<td>{escape(cell)}</td>" for cell in line)) for line in report.figures)
    charts = "".join(f"<h2>{escape(c.title)}</h2><figure>{svg(c)}{legend(c)}</figure>" for c in report.charts)
    samples = "".join(
        f"<h3>{escape(s.title)}</h3><pre>{s.html}</pre>"
        + (f"<details><summary>What stood there</summary><pre>{escape(s.truth)}</pre></details>" if s.truth else "")
        for s in report.samples
    )
    filled = f"<h2>Filled in</h2><p class='lead'>Underlined: written by the model.</p>{samples}" if samples else ""
    shell = "".join(f"<pre>{escape(line)}</pre>" for line in report.commands)
    after = f"<h2>Try next</h2>{shell}" if shell else ""
    return document(
        report.title,
        f'<h1>{escape(report.title)}</h1><p class="lead">{escape(report.lead)}</p>'
        f"<table>{head}{rows}</table>{charts}{filled}{after}",
    )


def write(report: Report, path: str | Path) -> Path:
    """The page as a file, whole or not at all."""
    path = Path(path)
    put(path, page(report))
    return path
