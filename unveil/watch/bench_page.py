"""The page of a bench: what it advises, quality against speed and passes, and the table of all that was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ..evaluate.advice import Advice
from ..evaluate.bench import Bench, Measured
from .curves import number, ticks
from .labels import Box, nearest, place
from .pareto import FAR, Picture, Point, kinds, obstacles, pictures, rounds
from .report import document

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 42
LETTER = 5.5, 12.0  # pixels of one, at 11 px
COLUMNS = (
    "way to decode", "quality, %", "95 %", "by draw", "against vanilla, points", "forwards", "tokens a forward",
    "tokens/s", "over vanilla", "memory, MB",
)  # fmt: skip
MORE = """
body { max-width: 78rem; } td, th { font-size: .85rem; white-space: nowrap; }
tr.front td:first-child { font-weight: 600; } tr.best td { background: var(--card); }
.plots { display: grid; gap: 1rem; grid-template-columns: 1fr 1fr; }
@media (max-width: 62rem) { .plots { grid-template-columns: 1fr; } } .table { overflow-x: auto; }
.kind { margin-right: 1.2em; }
svg .stairs { stroke: var(--soft); stroke-dasharray: 5 4; fill: none; } svg .faint { opacity: .35; }
svg .name { fill: var(--ink); paint-order: stroke; stroke: var(--back); stroke-width: 3px; }
svg .lead { stroke: var(--soft); stroke-width: .7; } svg .bar { stroke-width: 1.2; }
:root { --k0: #303437; --k1: #2166ac; --k2: #c2571a; --k3: #2e8b57; --k4: #8e44ad; --k5: #b8860b; --k6: #708090;
  --k7: #c0392b; --k8: #16a085; }
@media (prefers-color-scheme: dark) { :root { --k0: #d8dadd; --k1: #6ab0f3; --k2: #f2995c; --k3: #66c796; --k4: #c39bd3;
  --k5: #e2bf55; --k6: #aab7c4; --k7: #ec7063; --k8: #5fd0bd; } }
""" + "".join(f".k{i} {{ stroke: var(--k{i}); fill: var(--k{i}); color: var(--k{i}); }}\n" for i in range(9))


def cells(bench: Bench, one: Measured) -> list[str]:
    """A line of the table; see COLUMNS."""
    quality, less = bench.quality(one), bench.difference(one)
    vanilla = one is bench.vanilla
    return [
        one.name,
        f"{100 * quality.mean:.1f}",
        f"{100 * quality.low:.1f} to {100 * quality.high:.1f}",
        " ".join(f"{100 * score:.1f}" for score in one.scores.mean(1)),
        "" if vanilla else f"{100 * less.mean:+.1f} ({100 * less.low:+.1f} to {100 * less.high:+.1f})",
        f"{one.calls:.1f}",
        f"{one.parallel:.2f}",
        f"{one.speed:.1f}",
        f"{bench.gain(one):.2f}x",
        f"{one.memory / 1e6:.1f}",
    ]


def page(bench: Bench, told: Advice, facts: Mapping[str, object]) -> str:
    """One HTML document that needs nothing else. `facts`: what was measured on what, in the order to be shown."""
    shown = pictures(bench, told.best)
    colours = {kind: f"k{i % 9}" for i, kind in enumerate(kinds(shown[0].points))}
    plots = "".join(f"<figure><h2>{escape(each.title)}</h2>{svg(each, colours)}</figure>" for each in shown)
    keys = "".join(
        f'<span class="kind"><i class="{c}">&#9679;</i> {escape(kind)}</span> ' for kind, c in colours.items()
    )
    front = bench.front(lambda one: one.speed)
    lines = []
    for one in bench.measured:
        marks = [name for name, on in (("front", any(one is f for f in front)), ("best", one is told.best)) if on]
        line = "".join(f"<td>{escape(cell)}</td>" for cell in cells(bench, one))
        lines.append(f'<tr class="{" ".join(marks)}">{line}</tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    said = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
    skipped = "".join(
        f"<tr><td>{escape(one.decoder)} with {escape(one.cache)}</td><td>{escape(one.reason)}</td></tr>"
        for one in bench.skipped
    )
    refused = f'<h2>Skipped</h2><div class="table"><table>{skipped}</table></div>' if skipped else ""
    body = (
        f"<h1>Which decoder</h1><p><b>{escape(told.sentence)}</b></p>"
        f'<div class="plots">{plots}</div><p class="legend">{keys}</p>'
        '<p class="lead">Bars are 95 % intervals. Nothing lies beyond the dashed line; what it joins has a label. '
        "Points at the lower edge lie further down.</p>"
        f'<h2>All that was measured</h2><div class="table"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
        '<p class="lead">Bold: nothing is better in both quality and tokens per second. Forwards are those a problem '
        "needs by itself; tokens count up to the end of the text; speed is one problem after the other, the median of "
        "the runs; memory is the most at one time beside the weights.</p>"
        f'{refused}<h2>How it was measured</h2><div class="table"><table>{said}</table></div>'
    )
    return document("Which decoder", body, MORE)


def svg(shown: Picture, colours: Mapping[str, str]) -> str:
    """A picture as an SVG element."""
    (left, right), (low, high) = shown.sides, shown.ends

    def where(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / left) / math.log(right / left)
        up = (shown.height(y) - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(shown.title)}">']
    for y in ticks(low, high):
        if low <= y <= high:
            _, py = where(left, y)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in rounds(left, right):
        px, _ = where(x, low)
        parts.append(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(x)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(shown.x)}</text>')
    parts.append('<text x="4" y="10">problems right, %</text>')
    line = " ".join("{:.1f},{:.1f}".format(*where(*corner)) for corner in shown.stairs)
    parts.append(f'<polyline class="stairs" points="{line}"/>')
    for point in sorted(shown.points, key=lambda point: point.told):
        parts.append(
            mark(point, where(point.x, point.y), where(point.x, point.low), where(point.x, point.high), colours)
        )
    told = [point for point in shown.points if point.told]
    at = [where(point.x, point.y) for point in told]
    names = [shown.said(point) for point in told]
    sizes = [(LETTER[0] * len(name), LETTER[1]) for name in names]
    room = Box(LEFT + 2, TOP, WIDTH - 2, HEIGHT - BOTTOM - 2)
    for name, box, point in zip(names, place(at, sizes, obstacles(shown, where), room), at, strict=True):
        x, y = nearest(box, point)
        if math.dist((x, y), point) > FAR:
            ends = f'x1="{point[0]:.1f}" y1="{point[1]:.1f}" x2="{x:.1f}" y2="{y:.1f}"'
            parts.append(f'<line class="lead" {ends}/>')
        parts.append(f'<text class="name" x="{box.left:.1f}" y="{box.high - 3:.1f}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def mark(
    point: Point, at: Sequence[float], low: Sequence[float], high: Sequence[float], colours: Mapping[str, str]
) -> str:
    """A point with its bar, and its name for whoever hovers over it."""
    (x, y), size = at, 4.5 if point.told else 3.0
    name = f"{point.name} with {point.cache}" if point.role == "decoder" else point.name
    title = f"<title>{escape(name)}: {point.y:.1f} % at {number(point.x)}</title>"
    bar = f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low[1]:.1f}" y2="{high[1]:.1f}"/>'
    match point.role:
        case "vanilla":
            shape = f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'
        case "fewer steps":
            shape = f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
        case "autoregressive":
            shape = f'<path d="M{x:.1f} {y - 6:.1f}l6 10h-12z"/>'
        case _:
            shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    return f'<g class="{colours[point.kind]}{"" if point.told else " faint"}">{title}{bar}{shape}</g>'
