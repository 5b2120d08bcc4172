"""Quality against speed and against passes, as points with their front: what both pictures of a bench draw."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..evaluate.bench import Bench, Measured
from .curves import number
from .labels import Box, nearest, place

COLOURS = ("#2166ac", "#c2571a", "#2e8b57", "#8e44ad", "#b8860b", "#708090", "#c0392b", "#16a085")
PLAIN = "#303437"
SIZE = (13.0, 6.2)  # inches
DPI = 130
DEPTH = 30  # points below vanilla that a picture reaches
MARK = 6.0  # pixels from the middle of a mark to its edge
FAR = 18.0  # pixels from which on a line leads from a label to its point
MARKS = {"vanilla": "D", "fewer steps": "s", "autoregressive": "^", "decoder": "o"}
Place = Callable[[float, float], tuple[float, float]]
"""From a cost and a quality to pixels."""


@dataclass(frozen=True)
class Point:
    """One way to decode in one picture."""

    x: float
    y: float  # percent right
    low: float
    high: float
    name: str  # without what its colour tells
    role: str
    cache: str
    told: bool  # it gets a label

    @property
    def kind(self) -> str:
        """What its colour stands for."""
        return self.cache if self.role == "decoder" else self.role


@dataclass(frozen=True)
class Picture:
    """Points over one axis of cost, which is logarithmic."""

    title: str
    x: str
    points: Sequence[Point]
    front: Sequence[Point]  # by rising quality
    floor: float  # what is worse stands on it, so that the others have room

    @property
    def sides(self) -> tuple[float, float]:
        """Where the axis of cost begins and ends, with air for labels."""
        values = [point.x for point in self.points]
        air = max((max(values) / min(values)) ** 0.12, 1.15)
        return min(values) / air, max(values) * air

    @property
    def ends(self) -> tuple[float, float]:
        """Where the axis of quality begins and ends."""
        top = max(point.high for point in self.points)
        low = max(self.floor, min(point.low for point in self.points))
        air = 0.06 * max(top - low, 1.0)
        return low - air, top + air

    def height(self, y: float) -> float:
        """Where a quality is drawn."""
        return max(y, self.floor)

    def said(self, point: Point) -> str:
        """Its label."""
        return f"{point.name} ({point.y:.0f} %)" if point.y < self.floor else point.name

    @property
    def stairs(self) -> list[tuple[float, float]]:
        """The corners of the line behind which everything lies that something beats."""
        corners = []
        for index, one in enumerate(self.front):
            if index:
                corners.append((one.x, self.height(self.front[index - 1].y)))
            corners.append((one.x, self.height(one.y)))
        return corners


def pictures(bench: Bench, best: Measured | None = None) -> tuple[Picture, Picture]:
    """Quality against tokens per second, and against forwards per problem. `best` is labelled whatever it is."""
    calls = "forwards per problem (fewer are better)"
    return (
        picture(bench, best, "Quality and speed", "tokens per second", lambda one: one.speed, 1),
        picture(bench, best, "Quality and passes", calls, lambda one: one.calls, -1),
    )


def picture(
    bench: Bench, best: Measured | None, title: str, x: str, cost: Callable[[Measured], float], sign: int
) -> Picture:
    """`sign`: 1 where more is better, -1 where less is."""
    front = bench.front(lambda one: sign * cost(one))

    def point(one: Measured) -> Point:
        quality, arm = bench.quality(one), one.arm
        ends = 100 * quality.low, 100 * quality.high
        told = arm.role != "decoder" or one is best or any(one is other for other in front)
        return Point(cost(one), 100 * quality.mean, *ends, short(one), arm.role, arm.setting.cache, told)

    floor = 100 * float(bench.vanilla.scores.mean()) - DEPTH
    return Picture(title, x, [point(one) for one in bench.measured], [point(one) for one in front], floor)


def short(one: Measured) -> str:
    """Its name without what its colour tells."""
    setting = one.arm.setting
    match one.arm.role:
        case "decoder":
            return setting.decoder
        case "fewer steps":
            return f"{setting.steps} step{'' if setting.steps == 1 else 's'}"
    return one.name


def kinds(points: Sequence[Point]) -> list[str]:
    """What there are colours for: the plain ways, then caches in the order they come."""
    plain = dict.fromkeys(point.kind for point in points if point.role != "decoder")
    return [*plain, *dict.fromkeys(point.kind for point in points if point.role == "decoder")]


def rounds(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... between two numbers above 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**power for power in powers for m in (1, 2, 5) if low <= m * 10.0**power <= high]


def obstacles(shown: Picture, where: Place) -> list[Box]:
    """What labels keep off, in pixels: every mark, and the bars of those that have a label."""
    found = []
    for point in shown.points:
        x, y = where(point.x, point.y)
        mark = MARK if point.told else MARK / 2
        found.append(Box(x - mark, y - mark, x + mark, y + mark))
        if point.told:
            ends = where(point.x, point.low)[1], where(point.x, point.high)[1]
            found.append(Box(x - 1, min(ends), x + 1, max(ends)))
    return found


def png(bench: Bench, best: Measured | None = None, title: str = "") -> bytes:
    """Both pictures side by side, as the bytes of a PNG file.

    ModuleNotFoundError without matplotlib, which comes with the extra `plot`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    shown = pictures(bench, best)
    colours = dict(zip(kinds(shown[0].points), (PLAIN, *COLOURS * 9), strict=False))
    sides = figure.subplots(1, 2)
    for axes, each in zip(sides, shown, strict=True):
        draw(axes, each, colours)
    marks = [sides[0].plot([], [], MARKS.get(kind, "o"), color=colour, label=kind) for kind, colour in colours.items()]
    figure.legend(
        handles=[mark for (mark,) in marks], loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9
    )
    if title:
        figure.suptitle(textwrap.fill(title, 150), x=0.01, ha="left", fontsize=11)
    canvas.draw()  # fixes where everything lies
    figure.set_layout_engine("none")
    for axes, each in zip(sides, shown, strict=True):
        write_labels(axes, each)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw(axes, shown: Picture, colours: Mapping[str, str]) -> None:
    """Axes, front and points."""
    axes.set_xscale("log")
    axes.set_xlim(*shown.sides)
    axes.set_ylim(*shown.ends)
    axes.set_xticks(rounds(*shown.sides), [number(x) for x in rounds(*shown.sides)])
    axes.set_xticks([], minor=True)
    axes.set_title(shown.title, loc="left", fontsize=11)
    axes.set_xlabel(shown.x)
    axes.set_ylabel("problems right, %")
    axes.grid(True, color="#e3e5e7", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot(*zip(*shown.stairs, strict=True), color="#9aa0a6", linewidth=1.4, linestyle="--", zorder=2)
    for point in shown.points:
        low, y, high = (shown.height(value) for value in (point.low, point.y, point.high))
        axes.errorbar(
            point.x,
            y,
            yerr=[[y - low], [high - y]],
            fmt=MARKS[point.role],
            color=colours[point.kind],
            markersize=7.5 if point.told else 4.5,
            elinewidth=1.1 if point.told else 0.6,
            capsize=2 if point.told else 0,
            alpha=0.95 if point.told else 0.35,
            markeredgecolor="white" if point.told else colours[point.kind],
            zorder=4 if point.told else 3,
        )


def write_labels(axes, shown: Picture) -> None:
    """The names of the points that have one, in pixels, once the axes stand."""
    from matplotlib.patheffects import withStroke

    renderer = axes.figure.canvas.get_renderer()
    told = [point for point in shown.points if point.told]
    halo = [withStroke(linewidth=2.5, foreground="white")]
    notes = [axes.text(0, 0, shown.said(p), fontsize=8.5, transform=None, path_effects=halo, zorder=6) for p in told]
    sizes = [(box.width, box.height) for box in (note.get_window_extent(renderer) for note in notes)]
    where = lambda x, y: tuple(axes.transData.transform((x, shown.height(y))))
    at = [where(point.x, point.y) for point in told]
    frame = axes.get_window_extent(renderer)
    room = Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2)
    back = axes.transData.inverted()
    for note, size, box, point in zip(notes, sizes, place(at, sizes, obstacles(shown, where), room), at, strict=True):
        note.set_position((box.left, box.low + size[1] * 0.22))
        end = nearest(box, point)
        if math.dist(end, point) > FAR:
            line = [back.transform(point), back.transform(end)]
            axes.plot(*zip(*line, strict=True), color="#9aa0a6", linewidth=0.7, zorder=1, scalex=False, scaley=False)
