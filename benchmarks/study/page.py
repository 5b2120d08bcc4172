"""From the runs of a study to its tables, its numbers and its figure."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from measure import ROOT, Report

from unveil.evaluate.matched import at_entropy

from .arms import ARMS, SIZES, Plan

if TYPE_CHECKING:  # drawn only where matplotlib is installed
    from matplotlib.axes import Axes

Runs = Mapping[str, Sequence[dict]]
"""The runs of each arm, one a seed."""


def mean(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean over seeds and its standard error; None where there is none."""
    found = [value for value in values if value is not None]
    if not found:
        return None, None
    return statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None


def matched(points: Sequence[dict], steps: int, entropy: float) -> float | None:
    """Generative perplexity at this many steps and this entropy, read between the temperatures; None out of reach."""
    found = at_entropy(((one["entropy"], one["nats"]) for one in points if one["steps"] == steps), entropy)
    return None if found is None else math.exp(found)


def at(points: Sequence[dict], steps: int, temperature: float, what: str) -> float | None:
    """One figure of the texts written with so many steps at this temperature."""
    return next((one[what] for one in points if one["steps"] == steps and one["temperature"] == temperature), None)


class Study:
    """Means over seeds of everything that the runs measured."""

    def __init__(self, plan: Plan, runs: Runs):
        self.plan, self.runs = plan, runs
        self.reference = {run["seed"]: run["score"]["nats"] for run in runs.get("continued", [])}
        self.parent = next((run["autoregressive"] for run in runs.get("parent", [])), None)
        self.real = next((run["real"] for each in runs.values() for run in each if "real" in run), None)

    def ratio(self, run: dict, score: dict | None = None) -> float | None:
        """exp(bound - NLL of the parent continued on the same tokens), for the run's own score or another."""
        against = self.reference.get(run["seed"])
        return math.exp((score or run["score"])["nats"] - against) if against is not None else None

    def along(self, name: str) -> dict[str, dict[int, float]]:
        """Tokens to the ratio of the bound to the continued parent's at as many, in every layout; means over seeds."""
        found: dict[str, dict[int, list[float]]] = {}
        for run in self.runs[name]:
            for which, curve in (run.get("curves") or {"own": run["curve"]}).items():
                marks = found.setdefault(which, {})
                for tokens, ratio in self.against(run["seed"], curve):
                    marks.setdefault(tokens, []).append(ratio)
        return {
            which: {tokens: statistics.fmean(each) for tokens, each in marks.items()} for which, marks in found.items()
        }

    def against(self, seed: int, curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        """Tokens and the ratio to the parent continued on as many, after each point of a run's curve but the first."""
        same = [one for one in self.runs.get("continued", ()) if one["seed"] == seed]
        known = dict(same[0]["curve"]) if same else {}
        return [(tokens, math.exp(nats - known[tokens])) for tokens, nats in curve if tokens and tokens in known]

    def drift(self, run: dict) -> float | None:
        """Relative change of the autoregressive mode from the parent's."""
        return run["autoregressive"] / self.parent - 1 if self.parent else None

    def summary(self, name: str) -> dict[str, tuple[float | None, float | None]]:
        """Mean and standard error over seeds of each figure."""
        every = self.runs[name]
        picks: dict[str, Callable[[dict], float | None]] = {
            "before": lambda run: run["before"],
            "bound": lambda run: run["score"]["nats"],
            "text_error": lambda run: run["score"]["stderr"],
            "ratio": self.ratio,
            "bound_on_its_own": lambda run: run["score_on_its_own"]["nats"],
            "autoregressive": lambda run: run["autoregressive"],
            "drift": self.drift,
            "grad_norm_peak": lambda run: run["grad_norm_peak"],
        }
        found = {key: mean(pick(run) for run in every) for key, pick in picks.items()}
        for which in sorted({which for run in every for which in run.get("elsewhere", ())}):
            scores = [run["elsewhere"][which] for run in every]
            found[which] = mean(score["nats"] for score in scores)
            found[f"{which}_ratio"] = mean(map(self.ratio, every, scores))
        return {**found, **self.written(every)} if self.real else found

    def written(self, every: Sequence[dict]) -> dict[str, tuple[float | None, float | None]]:
        """Likewise of what was filled in and written."""
        found = {f"infill_{which}": mean(run["infill"][which] for run in every) for which in ("tokens", "whole")}
        hot = max(self.plan.temperatures)
        for steps in self.plan.sample_steps:
            for which in ("entropy", "nats", "forwards"):
                found[f"{which}_{steps}"] = mean(at(run["samples"], steps, hot, which) for run in every)
            found[f"matched_{steps}"] = mean(matched(run["samples"], steps, self.real["entropy"]) for run in every)
        return found


def show(report: Report, study: Study, title: str) -> dict[str, dict]:
    """All tables; the summaries behind them."""
    names = [name for name in ARMS if name in study.runs]
    found = {name: study.summary(name) for name in names}
    rows = []
    for name in names:
        s = found[name]
        figures = [s["before"][0], *s["bound"], *s["ratio"], s["bound_on_its_own"][0], s["autoregressive"][0]]
        rows.append([name, *figures, percent(s["drift"][0]), s["grad_norm_peak"][0], len(study.runs[name])])
    columns = (
        "arm",
        "before",
        "bound",
        "s.e.",
        "ratio",
        "s.e.",
        "own text",
        "AR mode",
        "AR drift",
        "norm peak",
        "seeds",
    )
    report.table(f"{title}: held-out nats per token; controls are exact, all others bounds", columns, rows)
    layouts(report, study, found, title)
    if study.real:
        writing(report, study, found, title)
    return found


def writing(report: Report, study: Study, found: Mapping[str, Mapping], title: str) -> None:
    """What the models fill in and write."""
    steps = study.plan.sample_steps
    rows = []
    for name, s in found.items():
        cells = [both(s[f"nats_{n}"][0], s[f"entropy_{n}"][0]) for n in steps]
        rows.append([name, percent(s["infill_tokens"][0]), percent(s["infill_whole"][0]), *cells])
    rows.append(["real text", *[None] * (len(steps) + 1), both(study.real["nats"], study.real["entropy"])])
    columns = ("arm", "blank: tokens", "whole", *(f"{n} steps" for n in steps))
    written = "generative perplexity under the untouched parent (entropy of a text's tokens), temperature"
    report.table(f"{title}: infilling, and {written} {max(study.plan.temperatures):g}", columns, rows)
    rows = [[name, *(s[f"matched_{n}"][0] for n in steps)] for name, s in found.items()]
    head = f"{title}: generative perplexity at the entropy of real text, {study.real['entropy']:.2f} nats"
    report.table(head, ("arm", *(f"{n} steps" for n in steps)), rows)


def layouts(report: Report, study: Study, found: Mapping[str, Mapping], title: str) -> None:
    """Leader models in blocks of other sizes and as whole texts, and how their ratios fall."""
    led = [name for name in found if "whole" in found[name]]
    if led:
        sizes = [*(f"blocks_{n}" for n in SIZES), "whole"]
        heads = [*(f"n = {n}" for n in SIZES), "whole texts"]
        rows = [[name, *(cell for which in sizes for cell in bound(found[name], which))] for name in led]
        columns = ("arm", *(column for head in heads for column in (head, "ratio")))
        report.table(f"{title}: leader models in blocks of n and as whole texts, one model a row", columns, rows)
    marks = sorted({t for name in found for curve in study.along(name).values() for t in curve})
    rows = []
    for name in found:
        for which, curve in study.along(name).items():
            if curve and not ARMS[name].control:
                rows.append([f"{name}, {which.replace('_', ' of ')}", *(curve.get(tokens) for tokens in marks)])
    if rows:
        columns = ("arm, layout", *(f"{tokens / 1e6:.2g}" for tokens in marks))
        report.table(f"{title}: ratio to the continued parent after as many million tokens", columns, rows)


def bound(summary: Mapping, which: str) -> tuple[float | None, float | None]:
    """The bound in one layout and its ratio."""
    return summary[which][0], summary[f"{which}_ratio"][0]


def percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def both(nats: float | None, entropy: float | None) -> str | None:
    return None if nats is None or entropy is None else f"{math.exp(nats):.1f} ({entropy:.2f})"


def numbers(study: Study, found: Mapping[str, Mapping]) -> dict[str, object]:
    """What the result file holds: the plan, means, and every run without its per-step lists."""
    long = {"losses", "grad_norms"}
    arms = {
        name: {key: {"mean": one[0], "se": one[1]} for key, one in summary.items() if one[0] is not None}
        for name, summary in found.items()
    }
    every = [run for each in study.runs.values() for run in each]
    runs = [{key: value for key, value in run.items() if key not in long} for run in every]
    plan = {name: told(value) for name, value in asdict(study.plan).items()}
    return {"plan": plan, "real": study.real, "arms": arms, "runs": runs}


def told(value: object) -> object:
    """Part of a plan; a path is told from here, not from the root of some machine."""
    if isinstance(value, tuple):
        return [told(each) for each in value]
    return os.path.relpath(value, ROOT) if isinstance(value, str) and value.startswith("/") else value


def figure(study: Study, path: Path) -> None:
    """Bound and ratio against tokens, and generative perplexity against entropy where text was written; one colour an
    arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = ["nats", *(["ratio"] if "continued" in study.runs else []), *(["text"] if study.real else [])]
    plot, (row,) = pyplot.subplots(1, len(panels), figsize=(6.2 * len(panels), 5.2), squeeze=False)
    axes = dict(zip(panels, row, strict=True))
    more = ["black", "navy", "maroon", "darkgreen", "indigo", "goldenrod", "deeppink", "teal", "slategray"]
    colours = dict(zip(ARMS, [f"C{i}" for i in range(10)] + more, strict=True))
    led = [name for name, every in study.runs.items() if every[0].get("curves")]
    for name, every in study.runs.items():
        style = {"color": colours[name], "linestyle": "--" if ARMS[name].control else "-", "label": name}
        lines = [(style, [run["curve"] for run in every])]
        if [name] == led:  # a single leader model, whose every layout is shown
            lines = [
                (
                    {**style, "linestyle": dashes, "label": f"{name}, {which.replace('_', ' of ')}"},
                    [run["curves"][which] for run in every],
                )
                for which, dashes in zip(every[0]["curves"], ("-.", "-", ":"), strict=True)
            ]
        for look, curves in lines:
            falling(axes["nats"], curves, **look)
            ratios = [study.against(run["seed"], curve) for run, curve in zip(every, curves, strict=True)]
            if not ARMS[name].control and all(ratios):
                falling(axes["ratio"], ratios, **look)
        if study.real:
            spread(axes["text"], study.summary(name), study.plan.sample_steps, **style)
    axes["nats"].set(xlabel="tokens, millions", ylabel="held-out nats per token (bound; dashed: exact)")
    if "ratio" in axes:
        said = "perplexity bound over that of the continued parent"
        axes["ratio"].set(xlabel="tokens, millions", ylabel=said, yscale="log")
    if study.real:
        right = axes["text"]
        right.plot(study.real["entropy"], study.real["perplexity"], "k*", markersize=12, label="real text")
        right.set(xlabel="entropy of a text's tokens, nats", ylabel="perplexity under the parent", yscale="log")
        steps = ", ".join(map(str, study.plan.sample_steps))
        right.set_title(f"temperature {max(study.plan.temperatures):g}; steps {steps}", fontsize=9)
    for each in row:
        if each is axes.get("ratio"):
            each.yaxis.set_major_formatter("{x:g}")
            each.yaxis.set_minor_formatter("{x:g}")
        each.grid(alpha=0.3, which="both" if each is axes.get("ratio") else "major")
        each.tick_params(which="minor", labelsize=7)
        each.legend(fontsize=7)
    plot.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    plot.savefig(partial, dpi=130, format="png")
    os.replace(partial, path)
    pyplot.close(plot)


def falling(axes: Axes, curves: Sequence[Sequence[tuple[int, float]]], **style: str) -> None:
    """One arm's bound by tokens: mean over seeds, and their range. The parent is a level."""
    marks = [tokens / 1e6 for tokens, _ in curves[0]]
    middle = [statistics.fmean(curve[i][1] for curve in curves) for i in range(len(marks))]
    if len(marks) == 1:
        axes.axhline(middle[0], **style)
        return
    axes.plot(marks, middle, **style)
    low, high = ([pick(curve[i][1] for curve in curves) for i in range(len(marks))] for pick in (min, max))
    axes.fill_between(marks, low, high, color=style["color"], alpha=0.15, linewidth=0)


def spread(axes: Axes, summary: Mapping, counts: Sequence[int], **style: str) -> None:
    """One arm's texts by steps: perplexity against entropy; the most steps are written beside their point."""
    points = [(summary[f"entropy_{n}"][0], summary[f"nats_{n}"][0], n) for n in counts]
    known = [(x, math.exp(y), n) for x, y, n in points if x is not None and y is not None]
    if known:
        across, up, _ = zip(*known, strict=True)
        axes.plot(across, up, marker="o", markersize=4, **style)
        axes.annotate(str(known[-1][2]), known[-1][:2], fontsize=7)
