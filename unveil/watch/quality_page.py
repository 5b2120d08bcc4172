"""The page of `unveil quality`: perplexity beside entropy, by steps and temperature, and what was written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from ..evaluate.quality import Point, Quality
from .curves import Chart, legend, svg
from .report import document

SHOWN = 2  # texts of each point
FIGURES = {
    "entropy": "entropy of a text",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "self_bleu": "self-BLEU",
    "repetition": "repeated 4-grams",
    "length": "tokens",
}
MORE = """
body { max-width: 72rem; } td, th { font-size: .85rem; } .table { overflow-x: auto; }
.plots { display: grid; gap: 1rem; grid-template-columns: 1fr 1fr; }
@media (max-width: 56rem) { .plots { grid-template-columns: 1fr; } }
td { white-space: nowrap; } td.wide { text-align: left; white-space: pre-wrap; }
"""


def page(found: Quality, facts: Mapping[str, object]) -> str:
    """One HTML document that needs nothing else. `facts`: how it was measured, in the order to be shown."""
    plots = "".join(f"<figure><h2>{escape(c.title)}</h2>{svg(c)}{legend(c)}</figure>" for c in charts(found))
    said = "".join(
        f"<tr><td>{escape(name)}</td><td class='wide'>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    body = (
        "<h1>What the model writes</h1>"
        '<p class="lead">A perplexity says nothing without the entropy beside it: sharper drawing lowers both. Compare '
        "perplexities at one entropy, such as that of real text.</p>"
        f'<div class="plots">{plots}</div><h2>At the entropy of real text</h2>{matched(found)}'
        f"<h2>All figures</h2>{table(found)}"
        '<p class="lead">In brackets 95 % intervals, by a bootstrap over texts. MAUVE-style: the divergence frontier '
        "of MAUVE over embeddings that are fitted here, not MAUVE itself; for its intervals real text and clusters are "
        "held as they are. Intervals are about the figure by its slope, so they may reach beyond what it can be.</p>"
        f'<h2>How it was measured</h2><div class="table"><table>{said}</table></div>'
        f"<h2>Some of the texts</h2>{samples(found)}"
    )
    return document("Quality", body, MORE)


def charts(found: Quality) -> list[Chart]:
    """Perplexity and entropy by model calls, one line a temperature, and real text as a level."""
    heats = sorted({point.temperature for point in found.points})

    def lines(name: str) -> dict[str, list[tuple[float, float]]]:
        made = {f"T = {heat:g}": [p for p in found.points if p.temperature == heat] for heat in heats}
        return {
            heat: [(math.log2(p.forwards), shape(name, p.figures[name].value)) for p in points]
            for heat, points in made.items()
        }

    def shape(name: str, value: float) -> float:
        return math.exp(value) if name == "nats" else value

    return [
        Chart(
            title,
            "model calls for a text, log2",
            unit,
            lines(name),
            {"real text": shape(name, found.real[name].value)},
        )
        for title, unit, name in (
            ("Generative perplexity", "perplexity under the scorer", "nats"),
            ("Entropy", "nats, of a text's tokens", "entropy"),
        )
    ]


def styles(found: Quality) -> list[str]:
    return [name for name in found.points[0].figures if name.startswith("mauve_style/")]


def named(found: Quality) -> dict[str, str]:
    return FIGURES | {name: f"MAUVE-style, {name.partition('/')[2]}" for name in styles(found)}


def table(found: Quality) -> str:
    names = named(found)
    head = ["steps", "T", "calls", "perplexity", *names.values()]
    lines = [[called(p), f"{p.temperature:g}", str(p.forwards), *figures(p.figures, names)] for p in found.points]
    lines.append(["real text", "", "", *figures(found.real, names)])
    return shown(head, lines)


def matched(found: Quality) -> str:
    names = {name: title for name, title in named(found).items() if name not in ("entropy", "length", "repetition")}
    lines = []
    for steps in found.steps:
        nats = found.matched(steps, "nats")
        cells = [found.matched(steps, name) for name in names]
        first = "out of reach" if nats is None else f"{math.exp(nats):.1f}"
        told = "-" if steps is None else str(steps)
        lines.append([told, first, *("-" if each is None else f"{each:.3f}" for each in cells)])
    return shown(["steps", "perplexity", *names.values()], lines)


def called(point: Point) -> str:
    return "-" if point.steps is None else str(point.steps)


def figures(made: Mapping, names: Mapping[str, str]) -> list[str]:
    nats = made["nats"]
    cells = [f"{math.exp(nats.value):.1f} ({math.exp(nats.low):.1f} to {math.exp(nats.high):.1f})"]
    for name in names:
        each = made.get(name)
        cells.append("-" if each is None else f"{each.value:z.3f} ({each.low:z.3f} to {each.high:z.3f})")
    return cells


def shown(head: list[str], lines: list[list[str]]) -> str:
    row = "<tr>{}</tr>".format
    top = row("".join(f"<th>{escape(cell)}</th>" for cell in head))
    cut = lambda cell: escape(cell).replace(" (", "<br>(")
    body = "".join(row("".join(f"<td>{cut(cell)}</td>" for cell in line)) for line in lines)
    return f'<div class="table"><table>{top}{body}</table></div>'


def samples(found: Quality) -> str:
    return "".join(
        f"<h3>{called(point)} steps, T = {point.temperature:g}</h3>"
        + "".join(f"<pre>{escape(text)}</pre>" for text in point.texts[:SHOWN])
        for point in found.points
    )
