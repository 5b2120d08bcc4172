"""What a choice between options costs: the error of score differences against forwards, beside DiffuLLaMA's grid."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from measure import ROOT, Report, threads
from numpy.typing import NDArray
from torch import Tensor

from unveil import hub, spec
from unveil.codecs.text import Text
from unveil.denoiser import Denoiser
from unveil.evaluate.conditional import POSITIONS, Pair, conditional, encoded
from unveil.evaluate.likelihood import score
from unveil.evaluate.masks import STEPS
from unveil.objectives import Batch
from unveil.tasks import Choosing, Published, Question

SEED, OURS, BLOCKS = "DiffuLLaMA's grid", "ours", "ours, in the model's own blocks"
INDEPENDENT, SPREAD, APART = "exact counts, drawn alone", "exact counts, levels spread", "ours, masks not shared"
PLAIN = (INDEPENDENT, SPREAD)
ENDS = 2  # passes that ours takes besides its draws
LARGEST = 2**31  # of the keys that make replicates independent
RESAMPLED = 2000


@dataclass(frozen=True)
class Asked:
    """A model and the questions it is asked. Shapes: Q questions, C contrasts of a right and a wrong option."""

    name: str
    model: Denoiser
    pairs: list[list[Pair]]  # (Q, options)
    gold: list[int]  # (Q,)

    @property
    def tokens(self) -> float:
        """Of an option, on average."""
        return float(np.mean([len(pair.continuation) for options in self.pairs for pair in options]))

    def positions(self, name: str, forwards: float) -> float:
        """That an option's forwards read. Of noisy blocks nothing is read before the first that holds a target."""
        size, each = self.model.attention.block, []
        for pair in (pair for options in self.pairs for pair in options):
            length = len(pair.context) + len(pair.continuation)
            if name == BLOCKS:
                assert size is not None
                each.append(length + (forwards - 1) * (length - len(pair.context) // size * size))
            else:
                each.append(length * forwards)
        return float(np.mean(each))


@dataclass(frozen=True)
class Arm:
    """One way to score options with so many draws each."""

    name: str
    draws: int
    forwards: float  # per option, as the protocol runs them
    error: NDArray[np.float64]  # (C,) variance of a contrast over replicates, nats per token squared
    mean: NDArray[np.float64]  # (C,) over replicates
    seconds: float


def questions(task: str, folder: str | None, count: int, options: int) -> list[Question]:
    """Of a task that is chosen, its own; of one that is written, each problem with other problems' answers beside."""
    made = spec.build("tasks", task)
    if isinstance(made, Published) and folder and not made.data:
        made = replace(made, data=folder)
    if isinstance(made, Choosing):
        return [replace(q, options=q.options[:options]) for q in made.questions(count) if q.gold < options]
    examples = made.examples(count)
    found = []
    for number, example in enumerate(examples):
        others = [each.answer for each in examples[number + 1 :] + examples[:number] if each.answer != example.answer]
        found.append(Question((example.prompt[-160:],) * options, (example.answer, *others[: options - 1]), 0))
    return found


def paired(text: Text, asked: Sequence[Question]) -> list[list[Pair]]:
    return [[encoded(text, c, o) for c, o in zip(q.contexts, q.options, strict=False)] for q in asked]


def asked(text: str, folder: str | None, count: int, options: int) -> Asked:
    """[NAME=]MODEL@TASK."""
    model, found, task = text.rpartition("@")
    if not found or not model or not task:
        raise ValueError(f"expected [NAME=]MODEL@TASK, got {text!r}")
    name, _, place = model.rpartition("=")
    network, codec = hub.load(place)
    chosen = questions(task, folder, count, options)
    named = f"{name or Path(place).name} on {task.split('(')[0]}"
    return Asked(named, network, paired(codec, chosen), [question.gold for question in chosen])


def run(given: Asked, name: str, draws: int, replicates: int) -> Arm:
    """All replicates of one arm in one call."""
    numbers = np.random.default_rng([draws, *name.encode()])
    fresh = lambda: int(numbers.integers(LARGEST))
    began = time.perf_counter()
    if name in PLAIN:
        forwards, scores = float(draws), plain(given, draws, replicates, fresh, alone=name == INDEPENDENT)
    else:
        every = []
        for options in given.pairs:
            for _ in range(replicates):
                key = fresh()
                every += [
                    replace(p, key=key if name in (OURS, BLOCKS) else fresh(), option=i) for i, p in enumerate(options)
                ]
        grid = name == SEED
        ways = {"protocol": "diffullama" if grid else "exact-count", "block": None if name == BLOCKS else 0}
        found = conditional(given.model, every, mode="bound", draws=draws, **ways)
        scores = found.nats if grid else found.nats / found.tokens
        first = [p for i, p in enumerate(every) if i // len(given.pairs[0]) % replicates == 0]  # as evaluations run it
        alone = conditional(given.model, first, mode="bound", draws=draws, **ways).forwards
        forwards = float(STEPS) if grid else float(alone.mean())
    seconds = time.perf_counter() - began
    each = scores.view(len(given.pairs), replicates, -1).numpy()
    rows = [(each[i, :, j] - each[i, :, right]) for i, right in enumerate(given.gold) for j in range(each.shape[2])]
    rows = [row for i, row in enumerate(rows) if i % each.shape[2] != given.gold[i // each.shape[2]]]
    variances, means = np.array([row.var(ddof=1) for row in rows]), np.array([row.mean() for row in rows])
    return Arm(name, draws, forwards, variances, means, seconds)


def plain(given: Asked, draws: int, replicates: int, fresh, *, alone: bool) -> Tensor:
    """(Q x replicates x options,) nats per token as `unveil score` finds them: levels evenly spread, or each drawn."""
    found = []
    for options in given.pairs:
        each = []
        for pair in options:
            row = torch.tensor([*pair.context, *pair.continuation])
            answer = torch.arange(len(row)) >= len(pair.context)
            count = replicates * (draws if alone else 1)
            ids = torch.tensor([fresh() for _ in range(count)])
            batch = Batch(row.expand(count, -1), answer.expand(count, -1), ids=ids)
            rows = max(1, POSITIONS // len(row))
            of = score(given.model, batch, mode="bound", block=0, draws=1 if alone else draws, rows=rows)
            each.append((of.totals / of.counts).view(replicates, -1).mean(1))
        found.append(torch.stack(each, 1))
    return torch.cat(found).flatten()


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(values.mean()))


def needed(arms: Sequence[Arm], seed: Arm, which: NDArray[np.integer] | slice) -> float:
    """How many times fewer forwards give the error of the grid: read off between the draws that were tried, in logs."""
    goal = np.log(rms(seed.error[which]))
    x = np.log([arm.forwards for arm in arms])
    y = np.log([max(rms(arm.error[which]), 1e-12) for arm in arms])
    below = [i for i in range(len(arms)) if y[i] <= goal]
    if not below:
        slope = -0.5  # beyond what was tried errors fall as those of independent draws do, at worst
        return float(seed.forwards / np.exp(x[-1] + (goal - y[-1]) / slope))
    i = below[0]
    at = x[i] if i == 0 else x[i - 1] + (x[i] - x[i - 1]) * (goal - y[i - 1]) / (y[i] - y[i - 1])
    return float(seed.forwards / np.exp(at))


def interval(arms: Sequence[Arm], seed: Arm) -> tuple[float, float, float]:
    """The gain and its 95 % interval, contrasts being the sample."""
    numbers, count = np.random.default_rng(0), len(seed.error)
    many = [needed(arms, seed, numbers.integers(count, size=count)) for _ in range(RESAMPLED)]
    return needed(arms, seed, slice(None)), *(float(q) for q in np.quantile(many, [0.025, 0.975]))


def figure(found: dict[str, list[Arm]], gains: dict[str, dict[str, tuple[float, float, float]]], path: Path) -> None:
    """Errors against forwards, a panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wide = min(len(found), 2)
    high = -(-len(found) // wide)
    shown, panels = pyplot.subplots(high, wide, figsize=(6.4 * wide, 4.2 * high), layout="constrained", squeeze=False)
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    for axes, (name, arms) in zip(panels.flat, found.items(), strict=False):
        for each in dict.fromkeys(arm.name for arm in arms):
            own = [arm for arm in arms if arm.name == each]
            x, y = [arm.forwards for arm in own], [rms(arm.error) for arm in own]
            if each == SEED:
                x, y = [x[0] * m for m in (1, 2, 4)], [y[0] / m**0.5 for m in (1, 2, 4)]  # repeats of the grid
            axes.plot(x, y, "s--" if each == SEED else "o-", label=each, color="#1d1f21" if each == SEED else None)
        axes.axhline(rms(arms[0].error), color="#9aa0a6", lw=0.7, ls=":")
        axes.set(xscale="log", yscale="log", xlabel="forwards per option", ylabel="standard error, nats per token")
        for axis, low, high in ((axes.xaxis, *axes.get_xlim()), (axes.yaxis, *axes.get_ylim())):
            ticks = [2.0**power for power in range(-8, 12) if low <= 2.0**power <= high]
            axis.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
            axis.set_minor_locator(pyplot.NullLocator())
        gain, least, most = gains[name][OURS]
        told = f"{gain:.1f} times fewer forwards for the grid's error ({least:.1f} to {most:.1f})"
        if least == most:  # the smallest number of draws is below the grid's error, whatever the questions
            told = f"over {gain:.1f} times fewer forwards for the grid's error"
        axes.set_title(f"{name}: {told}", loc="left", fontsize=9)
        axes.grid(True, which="both", color="#e3e5e7", lw=0.5)
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, dpi=130)
    pyplot.close(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    about = "[NAME=]MODEL@TASK, a task being a spec; of tasks that are written, answers of other problems are options"
    parser.add_argument("asked", nargs="*", default=["stdlib-dlm@infill"], help=about)
    parser.add_argument("--tasks-dir")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--options", type=int, default=2)
    parser.add_argument("--replicates", type=int, default=16)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3, 4], help="besides the two ends of ours")
    parser.add_argument("--reference", type=int, default=32, help="draws of the long run")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="choice_cost")
    parser.add_argument("--figure", type=Path, help="default: docs/choice-cost.png")
    parser.add_argument("--folder", type=Path, help="default: benchmarks/results")
    given = parser.parse_args()
    threads(given.threads)
    report = Report(given.name, *([given.folder] if given.folder else []))
    found: dict[str, list[Arm]] = {}
    gains: dict[str, dict[str, tuple[float, float, float]]] = {}
    numbers = []
    for each in (asked(text, given.tasks_dir, given.questions, given.options) for text in given.asked):
        names = [APART, OURS, *([BLOCKS] if each.model.attention.block else [])]
        arms = [run(each, SEED, STEPS, given.replicates)]
        for name in (*PLAIN, *names):
            arms += [run(each, name, draws + ENDS * (name in PLAIN), given.replicates) for draws in given.draws]
        whole = run(each, OURS, given.reference, 2).mean
        bounds = {BLOCKS: run(each, BLOCKS, given.reference, 2).mean} if BLOCKS in names else {}
        rows = []
        for arm in arms:
            bound = bounds.get(arm.name, whole)
            off = rms((arm.mean - bound) ** 2 + arm.error)
            turned = float(((arm.mean > 0) != (bound > 0)).mean())
            read = each.positions(arm.name, arm.forwards)
            rows.append([arm.name, arm.draws, arm.forwards, read, rms(arm.error), off, turned, arm.seconds])
        columns = ["estimator", "draws", "forwards per option", "positions read", "standard error"]
        title = f"{each.name}: {len(each.pairs)} questions, {each.tokens:.1f} tokens an option, "
        title += f"{given.replicates} replicates, nats per token"
        report.table(title, [*columns, "error against the bound", "mean preference turned", "seconds"], rows)
        own = {name: interval([arm for arm in arms if arm.name == name], arms[0]) for name in (*PLAIN, *names)}
        told = [[name, *gain] for name, gain in own.items()]
        title = f"{each.name}: times fewer forwards for the grid's standard error"
        report.table(title, ["estimator", "gain", "low", "high"], told)
        found[each.name], gains[each.name] = arms, own
        numbers.append(
            {
                "asked": each.name,
                "gains": own,
                "bound": whole.tolist(),
                "bound in blocks": bounds[BLOCKS].tolist() if bounds else None,
            }
            | {"arms": [told_of(arm) for arm in arms]}
        )
    figure(found, gains, given.figure or ROOT / "docs" / "choice-cost.png")
    kept = ("questions", "options", "replicates", "draws", "reference", "threads")
    report.write({"options": {name: getattr(given, name) for name in kept}, "models": numbers})


def told_of(arm: Arm) -> dict[str, object]:
    """For the file of results."""
    numbers = {"variances": arm.error.tolist(), "means": arm.mean.tolist()}
    return {"estimator": arm.name, "draws": arm.draws, "forwards": arm.forwards, "seconds": arm.seconds} | numbers


if __name__ == "__main__":
    main()
