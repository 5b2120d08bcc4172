"""Line charts as inline SVG: one polyline a series, readable in light and dark, no script and no dependency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 26, 40
MOST = 400  # points drawn of a series: more would only make the page heavier

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Named series over one x axis, and horizontal lines to compare with."""

    title: str
    x: str
    y: str
    series: Mapping[str, Points]
    levels: Mapping[str, float] = field(default_factory=dict)


def svg(chart: Chart) -> str:
    """The chart as an SVG element; colours come from the page's classes c0, c1, ..."""
    series = {name: thin(points) for name, points in chart.series.items()}
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points] + list(chart.levels.values())
    if not xs:
        return ""
    across, up = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = up[0], up[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share_x = (x - low_x) / ((high_x - low_x) or 1)
        share_y = (y - low_y) / ((high_y - low_y) or 1)
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share_y * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">']
    for y in up:
        _, py = place(low_x, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in across:
        if low_x <= x <= high_x:
            px, _ = place(x, low_y)
            parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(x)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(chart.x)}</text>')
    parts.append(f'<text x="4" y="11">{escape(chart.y)}</text>')
    for index, points in enumerate(series.values()):
        line = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        if len(points) == 1:
            px, py = place(*points[0])
            parts.append(f'<circle class="c{index % 6} dot" cx="{px:.1f}" cy="{py:.1f}" r="3"/>')
        parts.append(f'<polyline class="c{index % 6}" points="{line}"/>')
    for index, level in enumerate(chart.levels.values(), len(series)):
        _, py = place(low_x, level)
        parts.append(f'<line class="c{index % 6} level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
    return "".join([*parts, "</svg>"])


def legend(chart: Chart) -> str:
    """The names of series and levels in their colours."""
    names = [*chart.series, *(f"{name}: {number(level)}" for name, level in chart.levels.items())]
    keys = (f'<span class="key c{index % 6}">{escape(name)}</span>' for index, name in enumerate(names))
    return f'<p class="legend">{" ".join(keys)}</p>'


def thin(points: Points) -> Points:
    """At most `MOST` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose the range."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    return [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def number(value: float) -> str:
    """A short decimal: 1200000 is 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"
