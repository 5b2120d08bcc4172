"""The report of an evaluation: as Markdown, and as one HTML page with a plot of every share and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..evaluate.intervals import Interval
from ..evaluate.suite import Result
from ..evaluate.versus import Line, at_chance
from .report import document

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 190, 30, 34, 20
MORE = """
body { max-width: 74rem; } td, th { font-size: .85rem; white-space: nowrap; } .table { overflow-x: auto; }
tr.main td { font-weight: 600; } td.at { color: var(--soft); font-style: italic; } svg .name { fill: var(--ink); }
svg .chance { stroke: var(--soft); stroke-dasharray: 3 3; } svg .bar { stroke-width: 2; }
"""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model, and perhaps of another, on the same items."""

    model: str
    other: str | None
    results: Sequence[Result]
    others: Sequence[Result] | None
    lines: Sequence[Line]
    facts: Mapping[str, object]
    command: str

    @property
    def heads(self) -> list[str]:
        """Of the columns that `cells` fills."""
        beside = [self.other, "difference", "McNemar p"] if self.other else []
        return ["task", "figure", "items", self.model, *beside, "chance", "verdict"]

    @property
    def sentence(self) -> str:
        """What stands above everything else."""
        return at_chance(self.lines) or "These tasks have no share that guessing gets."


def number(value: float, share: bool) -> str:
    return f"{100 * value:.1f}" if share else f"{value:.4g}"


def ranged(found: Interval, share: bool, signed: bool = False) -> str:
    """A mean and its interval, shares in percent."""
    plus = "+" if signed and found.mean >= 0 else ""
    return f"{plus}{number(found.mean, share)} [{number(found.low, share)}, {number(found.high, share)}]"


def cells(line: Line, beside: bool) -> list[str]:
    """A row of the table; see `Evaluation.heads`."""
    name = f"{line.task}, {line.kind}" if line.kind else line.task
    found = [name, line.figure.replace("_", " "), str(line.items), ranged(line.interval, line.share)]
    if beside:
        there = line.versus
        found.append(ranged(there.interval, line.share) if there else "")
        found.append(ranged(there.difference, line.share, True) if there and there.difference else "")
        found.append(f"{there.p:.3g}" if there and there.p is not None else "")
    return [*found, "" if not line.chance else number(line.chance, True), line.verdict]


def costs(found: Evaluation) -> list[list[str]]:
    """What every task took of every model, with how it was asked."""
    rows = []
    for results in (found.results, found.others or ()):
        for each in results:
            unsure = "" if each.unsure is None else f"{100 * each.unsure:.0f}"
            took = [f"{each.part.seconds:.1f}", f"{each.forwards:.1f}", unsure, each.part.layout]
            rows.append([each.task, each.model, str(each.items), *took])
    return rows


def known(found: Evaluation) -> list[list[str]]:
    """How it was measured, without what was not asked for."""
    return [[name, str(value)] for name, value in found.facts.items() if value is not None]


COSTS = ["task", "model", "items", "seconds", "forwards per item", "unsure, %", "how"]
NOTES = (
    "Intervals are 95 %: Wilson's for shares, a bootstrap over items for everything else. Differences are a paired "
    "bootstrap on the same items, p is McNemar's exact test. Nothing is corrected for asking several questions: of "
    "twenty differences between equal models, one shows.",
    "Unsure: choices whose two likeliest options lie within two standard errors of the random draws.",
)


def markdown(found: Evaluation) -> str:
    """The tables, for people who read plain text."""
    beside = found.other is not None
    against = f" beside {found.other}" if beside else ""
    parts = [
        f"# Evaluation of {found.model}{against}",
        found.sentence,
        grid(found.heads, [cells(line, beside) for line in found.lines]),
    ]
    parts += [NOTES[0], "## What it took", grid(COSTS, costs(found)), NOTES[1], "## How it was measured"]
    parts += [grid(["", ""], known(found)), f"    {found.command}"]
    return "\n\n".join(parts) + "\n"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    clean = lambda cell: str(cell).replace("|", "\\|").replace("\n", " ")
    told = [f"| {' | '.join(map(clean, row))} |" for row in (head, *rows)]
    return "\n".join([told[0], f"|{'---|' * len(head)}", *told[1:]])


def page(found: Evaluation) -> str:
    """One HTML document that needs nothing else."""
    beside = found.other is not None
    rows = "".join(
        f'<tr class="{"main" if line.main else ""}">'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells(line, beside)[:-1])
        + f'<td class="{"at" if line.verdict in ("at chance", "none right") else ""}">{escape(line.verdict)}</td></tr>'
        for line in found.lines
    )
    head = "".join(f"<th>{escape(name or '')}</th>" for name in found.heads)
    keys = "".join(
        f'<span class="key c{i}">{escape(name)}</span>'
        for i, name in enumerate(filter(None, (found.model, found.other)))
    )
    chance = " Dashed: chance." if any(line.chance for line in found.lines) else ""
    drawn = svg(found)
    legend = f'<p class="legend">{keys} Bars: 95 % intervals.{chance}</p>'
    plot = f"<figure>{drawn}</figure>{legend}" if drawn else ""
    body = (
        f"<h1>Evaluation of {escape(found.model)}</h1><p><b>{escape(found.sentence)}</b></p>{plot}"
        f'<div class="table"><table><tr>{head}</tr>{rows}</table></div><p class="lead">{escape(NOTES[0])}</p>'
        f"<h2>What it took</h2>{table(COSTS, costs(found))}<p class='lead'>{escape(NOTES[1])}</p>"
        f"<h2>How it was measured</h2>{table([], known(found))}"
        f"<pre>{escape(found.command)}</pre>"
    )
    return document(f"Evaluation of {found.model}", body, MORE)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML."""
    top = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table>{top}{body}</table></div>'


def svg(found: Evaluation) -> str:
    """Every share as a point on its interval, the model's above the other's, from 0 to 100 percent."""
    shown = [line for line in found.lines if line.share and (line.main or line.kind)]
    if not shown:
        return ""
    place = lambda share: LEFT + share * (WIDTH - LEFT - RIGHT)
    height = TOP + ROW * len(shown) + 24
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="shares and their intervals">']
    for tick in range(0, 101, 20):
        x = place(tick / 100)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 22}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{tick} %</text>')
    for number, line in enumerate(shown):
        top = TOP + ROW * number
        name = f"{line.task}, {line.kind}" if line.kind else f"{line.task}, {line.figure.replace('_', ' ')}"
        parts.append(f'<text class="name" x="{LEFT - 8}" y="{top + 18}" text-anchor="end">{escape(name)}</text>')
        if line.chance:
            x = place(line.chance)
            parts.append(f'<line class="chance" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 3}" y2="{top + ROW - 3}"/>')
        ends = [line.interval] + ([line.versus.interval] if line.versus else [])
        for i, each in enumerate(ends):
            y = top + (12 if len(ends) > 1 and i == 0 else 22 if len(ends) > 1 else 16)
            low, middle, high = (place(share) for share in (each.low, each.mean, each.high))
            told = f"{(found.model, found.other)[i]}: {ranged(each, True)} %"
            parts.append(
                f'<g class="c{i}"><title>{escape(told)}</title><line class="bar c{i}" x1="{low:.1f}" x2="{high:.1f}" '
                f'y1="{y}" y2="{y}"/><circle class="dot c{i}" cx="{middle:.1f}" cy="{y}" r="4"/></g>'
            )
    return "".join([*parts, "</svg>"])
