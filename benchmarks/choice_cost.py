"""What a choice between options costs: the error of score differences against forwards, beside DiffuLLaMA's grid."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from measure import ROOT, Report, threads
from numpy.typing import NDArray

from unveil import hub, spec
from unveil.codecs.text import Text
from unveil.denoiser import Denoiser
from unveil.evaluate.conditional import Pair, conditional, encoded
from unveil.evaluate.masks import STEPS
from unveil.tasks import Choosing, Published, Question

SEED, OURS = "DiffuLLaMA's grid", "exact count, stratified, shared masks"
INDEPENDENT, SHARED, STRATIFIED = "exact count", "exact count, shared masks", "exact count, stratified"
LARGEST = 2**31  # of the keys that make replicates independent
RESAMPLED = 2000


@dataclass(frozen=True)
class Arm:
    """One way to score options with so many draws each. Shapes: C contrasts of a right and a wrong option."""

    name: str
    draws: int
    forwards: float  # rows read per option
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


def run(model: Denoiser, pairs: list[list[Pair]], gold: list[int], name: str, draws: int, replicates: int) -> Arm:
    """All replicates of one arm in one call."""
    numbers = np.random.default_rng([draws, *name.encode()])
    fresh = lambda: int(numbers.integers(LARGEST))
    single, apart = name in (INDEPENDENT, SHARED), name in (INDEPENDENT, STRATIFIED, SEED)
    turns = draws if single else 1
    given = []
    for options in pairs:
        for _ in range(replicates):
            for _ in range(turns):
                key = fresh()
                given += [replace(p, key=fresh() if apart else key, option=i) for i, p in enumerate(options)]
    began = time.perf_counter()
    protocol = "diffullama" if name == SEED else "exact-count"
    found = conditional(model, given, mode="bound", protocol=protocol, block=0, draws=1 if single else draws)
    seconds = time.perf_counter() - began
    scores = (found.nats if name == SEED else found.nats / found.tokens).numpy()
    variances, means, at = [], [], 0
    for options, right in zip(pairs, gold, strict=True):
        size = replicates * turns * len(options)
        here = scores[at : at + size].reshape(replicates, turns, len(options)).mean(1)  # (R, options)
        for wrong in range(len(options)):
            if wrong != right:
                contrast = here[:, wrong] - here[:, right]
                variances.append(contrast.var(ddof=1))
                means.append(contrast.mean())
        at += size
    each = STEPS if name == SEED else float(found.forwards.sum()) / len(given) * turns
    return Arm(name, draws, float(each), np.array(variances), np.array(means), seconds)


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


def figure(arms: Sequence[Arm], gain: str, path: Path) -> None:
    """Errors against forwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    for name in (SEED, INDEPENDENT, SHARED, STRATIFIED, OURS):
        own = [arm for arm in arms if arm.name == name]
        x, y = [arm.forwards for arm in own], [rms(arm.error) for arm in own]
        if name == SEED:
            x, y = [x[0] * m for m in (1, 2, 4)], [y[0] / m**0.5 for m in (1, 2, 4)]  # repeats of the grid
        axes.plot(x, y, "s--" if name == SEED else "o-", label=name, color="#1d1f21" if name == SEED else None)
    axes.axhline(rms(next(arm for arm in arms if arm.name == SEED).error), color="#9aa0a6", lw=0.7, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="forwards per option", ylabel="standard error, nats per token")
    axes.set_title(f"Error of the difference between two options: {gain}", loc="left", fontsize=10)
    axes.grid(True, which="both", color="#e3e5e7", lw=0.5)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, dpi=130)
    pyplot.close(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stdlib-dlm")
    parser.add_argument("--task", default="infill", help="a spec; of tasks that are written, answers of other problems")
    parser.add_argument("--tasks-dir")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--options", type=int, default=3)
    parser.add_argument("--replicates", type=int, default=16)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--reference", type=int, default=256, help="draws of the long run")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="choice_cost")
    parser.add_argument("--figure", type=Path, help="default: docs/choice-cost.png")
    parser.add_argument("--folder", type=Path, help="default: benchmarks/results")
    given = parser.parse_args()
    threads(given.threads)
    model, text = hub.load(given.model)
    asked = questions(given.task, given.tasks_dir, given.questions, given.options)
    pairs, gold = paired(text, asked), [question.gold for question in asked]
    arms = [run(model, pairs, gold, SEED, STEPS, given.replicates)]
    for name in (INDEPENDENT, SHARED, STRATIFIED, OURS):
        arms += [run(model, pairs, gold, name, draws, given.replicates) for draws in given.draws]
    reference = run(model, pairs, gold, OURS, given.reference, 2)
    report = Report(given.name, *([given.folder] if given.folder else []))
    title = f"{given.model} on {given.task}: {len(asked)} questions, {given.replicates} replicates, nats per token"
    rows = []
    for arm in arms:
        off = rms((arm.mean - reference.mean) ** 2 + arm.error)
        turned = float(((arm.mean > 0) != (reference.mean > 0)).mean())
        rows.append([arm.name, arm.draws, arm.forwards, rms(arm.error), off, turned, arm.seconds])
    columns = ["estimator", "draws", "forwards per option", "standard error", "error against the bound"]
    report.table(title, [*columns, "mean preference turned", "seconds"], rows)
    gains = {name: interval([arm for arm in arms if arm.name == name], arms[0]) for name in {a.name for a in arms[1:]}}
    told = [[name, *gains[name]] for name in (INDEPENDENT, SHARED, STRATIFIED, OURS)]
    report.table("times fewer forwards for the grid's standard error", ["estimator", "gain", "low", "high"], told)
    sentence = "{:.1f} times fewer forwards for the grid's error ({:.1f} to {:.1f})".format(*gains[OURS])
    figure(arms, sentence, given.figure or ROOT / "docs" / "choice-cost.png")
    numbers = {
        "options": {k: str(v) for k, v in vars(given).items()},
        "gains": gains,
        "reference": reference.mean.tolist(),
    }
    each = [
        {"estimator": a.name, "draws": a.draws, "forwards": a.forwards, "seconds": a.seconds, "error": rms(a.error)}
        | {"variances": a.error.tolist(), "means": a.mean.tolist()}
        for a in arms
    ]
    report.write({**numbers, "arms": each})


if __name__ == "__main__":
    main()
