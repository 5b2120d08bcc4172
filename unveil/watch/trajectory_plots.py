"""Static pictures of trajectories: the figures of every cell, and the map of one text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .pareto import COLOURS
from .scenes import Scene

DPI = 120
SOFT = "#6b7075"
LIMITS = -0.25, 1.0  # of normalised probe scores; what is worse than the most frequent class is not of interest


def pictures(about: Mapping[str, Any], seen: Sequence[Scene]) -> dict[str, bytes]:
    """PNG files by name. ModuleNotFoundError without matplotlib, which comes with the extra `plot`."""
    return {"trajectory.png": figures(about), "map.png": heat(seen[min(1, len(seen) - 1)])}


def figures(about: Mapping[str, Any]) -> bytes:
    """A row for each cell: settling, entropy, calibration, probes, sensitivity."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    cells = about["cells"]
    figure = Figure(figsize=(19, 3.5 * len(cells) + 0.6), dpi=DPI, layout="constrained")
    rows = figure.subplots(len(cells), 5, squeeze=False)
    for axes, cell in zip(rows, cells, strict=True):
        for draw, each in zip((settled, entropies, calibrated, read, disturbed), axes, strict=True):
            draw(each, cell)
            each.spines[["top", "right"]].set_visible(False)
            each.grid(True, color="#e3e5e7", linewidth=0.6)
            each.set_axisbelow(True)
            if each.get_legend_handles_labels()[0]:
                each.legend(frameon=False, fontsize=7.5, loc="lower right" if draw is settled else "best")
            if draw is not settled:
                each.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel(cell["cell"], fontsize=10, fontweight="bold")
    name = Path(about["model"]).name
    figure.suptitle(f"{name}: {about['steps']} steps, labels {about['labels']}", x=0.01, ha="left")
    return saved(figure)


def settled(axes, cell: Mapping[str, Any]) -> None:
    """Mean commitment by class, with the mean reveal step."""
    found = sorted(cell["settling"]["by_class"].items(), key=lambda pair: -pair[1]["commitment"]["mean"])
    names = [name for name, _ in found]
    y = np.arange(len(names))
    when = [each["commitment"] for _, each in found]
    ends = [[c["mean"] - c["low"] for c in when], [c["high"] - c["mean"] for c in when]]
    axes.barh(y, [c["mean"] for c in when], xerr=ends, color=COLOURS[0], ecolor=SOFT, height=0.65, label="commitment")
    axes.plot([each["revealed"]["mean"] for _, each in found], y, "o", color=COLOURS[1], markersize=4, label="reveal")
    axes.set_yticks(y, names, fontsize=8)
    axes.set_title("Mean step by class", loc="left", fontsize=10)
    axes.set_xlabel("step")


def entropies(axes, cell: Mapping[str, Any]) -> None:
    """Entropy of what ends wrong and right."""
    for style, name, said in (("-", "kept", ""), (":", "reread", ", read again")):
        each = cell["sureness"]["separation"][name]
        axes.plot(each["entropy_wrong"], style, color=COLOURS[1], label=f"ends wrong{said}")
        axes.plot(each["entropy_right"], style, color=COLOURS[0], label=f"ends right{said}")
    axes.set_title("Entropy, nats", loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)


def calibrated(axes, cell: Mapping[str, Any]) -> None:
    """Expected calibration error by step, with bands."""
    for colour, (name, each) in zip(COLOURS, cell["sureness"]["calibration"].items(), strict=False):
        x = range(len(each["ece"]))
        axes.plot([e["mean"] for e in each["ece"]], color=colour, label=name.replace("reread", "read again"))
        axes.fill_between(
            x, [e["low"] for e in each["ece"]], [e["high"] for e in each["ece"]], color=colour, alpha=0.13
        )
    axes.set_title("Calibration error (ECE)", loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)


def read(axes, cell: Mapping[str, Any]) -> None:
    """Probes of the last layer."""
    axes.set_title("Probes of the last layer, normalised", loc="left", fontsize=10)
    axes.set_xlabel("step")
    if "recovery" not in cell:
        axes.text(0.5, 0.5, "no states were kept", ha="center", transform=axes.transAxes, color=SOFT)
        return
    found = cell["recovery"]
    axes.set_ylim(*LIMITS)
    for colour, (name, each) in zip(COLOURS, found["targets"].items(), strict=False):
        bounds = each["last_layer"]
        axes.plot(found["steps"], [b["mean"] for b in bounds], "o-", color=colour, markersize=3, label=name)
        low, high = [b["low"] for b in bounds], [b["high"] for b in bounds]
        axes.fill_between(found["steps"], low, high, color=colour, alpha=0.13)


def disturbed(axes, cell: Mapping[str, Any]) -> None:
    """What masking again costs, by rule."""
    axes.set_title("Masked again: points of accuracy lost", loc="left", fontsize=10)
    axes.set_xlabel("step")
    if "sensitivity" not in cell:
        axes.text(0.5, 0.5, "not perturbed", ha="center", transform=axes.transAxes, color=SOFT)
        return
    for colour, (rule, each) in zip(COLOURS, cell["sensitivity"].items(), strict=False):
        drop = each["drop"]
        axes.plot(each["steps"], [100 * d["mean"] for d in drop], "o-", color=colour, markersize=3, label=rule)
        low, high = [100 * d["low"] for d in drop], [100 * d["high"] for d in drop]
        axes.fill_between(each["steps"], low, high, color=colour, alpha=0.13)
        axes.plot(each["steps"], [100 * d["mean"] for d in each["collateral"]], ":", color=colour, linewidth=1)
    axes.plot([], [], ":", color=SOFT, linewidth=1, label="collateral part")
    axes.axhline(0, color=SOFT, linewidth=0.7)


def heat(scene: Scene) -> bytes:
    """Steps by masked positions: confidence, with commitment and reveal, and the last answers below."""
    from matplotlib.figure import Figure

    count, steps = scene.probability.shape
    figure = Figure(figsize=(max(7.0, 0.26 * count + 1.6), 0.15 * steps + 2.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(scene.probability.T, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    x = np.arange(count)
    axes.scatter(x, scene.committed, s=34, facecolors="none", edgecolors=COLOURS[1], linewidths=1.1, label="committed")
    axes.scatter(x, scene.revealed, s=9, color="#1d1f21", label="written")
    last = [scene.words[i] for i in scene.predicted[:, -1]]
    axes.set_xticks(x, [plain(word) for word in last], rotation=90, fontsize=7)
    for tick, right in zip(axes.get_xticklabels(), scene.right[:, -1], strict=True):
        tick.set_color("#1d1f21" if right else COLOURS[1])
    axes.set_ylabel("step")
    axes.set_title(f"{scene.cell}: confidence; below, the last answers, wrong ones coloured", loc="left", fontsize=9)
    figure.colorbar(shown, ax=axes, label="probability", pad=0.01)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, fontsize=8, frameon=False)
    return saved(figure)


def plain(word: str) -> str:
    """A token that a picture can show: no line ends, no markup of matplotlib, and only what its font has."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    shown = word.replace("\n", "\u21b5").strip(" ") or "\u2423"
    known = "".join(letter if letter.isprintable() and font.get_char_index(ord(letter)) else "?" for letter in shown)
    return known.replace("$", r"\$")


def saved(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
