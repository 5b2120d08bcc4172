"""The picture of `unveil quality`: perplexity and entropy by model calls, and one against the other."""

from __future__ import annotations

import io
import math

from ..evaluate.quality import Quality

DPI = 130


def png(found: Quality) -> bytes:
    """Needs matplotlib; ModuleNotFoundError without it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    real = found.real["entropy"].value, math.exp(found.real["nats"].value)
    heats = sorted({point.temperature for point in found.points})
    for number, heat in enumerate(heats):
        line = sorted((p for p in found.points if p.temperature == heat), key=lambda p: p.forwards)
        across = [point.forwards for point in line]
        look = {"color": f"C{number}", "marker": "o", "markersize": 4, "label": f"T = {heat:g}"}
        for axes, name, shape in ((left, "nats", math.exp), (middle, "entropy", float)):
            made = [point.figures[name] for point in line]
            axes.plot(across, [shape(each.value) for each in made], **look)
            axes.fill_between(
                across,
                [shape(each.low) for each in made],
                [shape(each.high) for each in made],
                color=f"C{number}",
                alpha=0.15,
                linewidth=0,
            )
        right.plot([point.figures["entropy"].value for point in line], [point.perplexity for point in line], **look)
        for point in line:
            where = point.figures["entropy"].value, point.perplexity
            right.annotate(str(point.forwards), where, (4, 4), textcoords="offset points", fontsize=7)
    left.axhline(real[1], color="black", linestyle="--", linewidth=1, label="real text")
    middle.axhline(real[0], color="black", linestyle="--", linewidth=1, label="real text")
    right.plot(*real, "k*", markersize=12, label="real text")
    left.set(xlabel="model calls for a text", ylabel="perplexity under the scorer", xscale="log", yscale="log")
    middle.set(xlabel="model calls for a text", ylabel="entropy of a text's tokens, nats", xscale="log")
    right.set(xlabel="entropy of a text's tokens, nats", ylabel="perplexity under the scorer", yscale="log")
    right.set_title("numbers: model calls for a text", fontsize=9)
    calls = sorted({point.forwards for point in found.points})
    for axes in (left, middle):
        axes.set_xticks(calls, [str(number) for number in calls])
        axes.xaxis.set_tick_params(which="minor", bottom=False, labelbottom=False)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, dpi=DPI, format="png")
    return out.getvalue()
