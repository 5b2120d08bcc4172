"""The reversal curse: pairs seen one way round, asked both ways of autoregressive, masked and adapted models."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from measure import RESULTS, ROOT, Report, put, stamp, threads
from numpy.typing import NDArray
from rich.console import Console

from unveil import hub, spec
from unveil.attention import FULL
from unveil.evaluate.intervals import Interval, resampled, wilson
from unveil.evaluate.suite import Candidate, How, evaluate, refusal
from unveil.start import start
from unveil.tasks import Example
from unveil.tasks.reversal import Reversal
from unveil.train import Recipe, train

WORK = Path(os.environ.get("UNVEIL_CACHE", "~/.cache/unveil")).expanduser() / "bench" / "reversal"
RECIPE = ROOT / "recipes" / "reversal.toml"
AR, PARENT = "autoregressive", "parent"
KINDS = ("forward", "reverse")
TAUGHT = 100  # pairs whose questions training asked, that are asked again
PUBLISHED = {"LLaDA 8B": (48.8, 42.4), "GPT-4o": (82.7, 34.3), "Qwen2.5 7B": (75.9, 38.0)}  # 2502.09992, right in %


@dataclass(frozen=True)
class Arm:
    """A model: what it is trained by, from what, and for how many times the parent's updates.

    `whole`: it is the parent itself, asked under full attention instead of its own.
    """

    told: str
    objective: str = AR
    parent: str = ""
    share: int = 1
    whole: bool = False


ARMS = {
    PARENT: Arm("autoregressive, half the positions"),
    "continued": Arm("autoregressive", parent=PARENT),
    "masked": Arm("masked, from random weights", "masked", share=2),
    "masked-long": Arm("masked, twice the positions", "masked", "masked", 2),
    "random": Arm("as full, from random weights", "adapt(anneal=0.3)", share=2),
    "full": Arm("adapted to full attention, shifted", "adapt(anneal=0.3)", PARENT),
    "leader-apart": Arm("adapted, in blocks that part the names", "leader(n=2, full=0)", PARENT),
    "leader": Arm("adapted to the leader layout", "leader(n=5, full=0.5)", PARENT),
    "leader-whole": Arm("the same, under full attention", parent="leader", share=0, whole=True),
}


@dataclass(frozen=True)
class Plan:
    """How much is trained and on what."""

    pairs: int = 200
    steps: int = 600
    rows: int = 64
    lr: float = 1.5e-3

    def task(self, world: int) -> str:
        return f"reversal(pairs={self.pairs}, syllables=2, world={world}, away=3, repeats=2, length=2)"

    @property
    def key(self) -> str:
        """What runs of this plan are kept under."""
        told = json.dumps([self.task(0), asdict(self), Recipe.read(RECIPE).plain()])
        return blake2b(told.encode(), digest_size=6).hexdigest()


def made(plan: Plan, world: int, folder: Path) -> tuple[Reversal, str]:
    """The task of a seed and the file of its training rows, each problem once, as `unveil task` writes them."""
    task = spec.build("tasks", plan.task(world))
    assert isinstance(task, Reversal)
    rows = task.examples(task.available("train") or 0, "train", world)
    lines = (json.dumps(each.row) + "\n" for each in rows)
    return task, str(put(folder / "pairs.jsonl", "".join(lines)))


def run(name: str, plan: Plan, seed: int, folder: Path) -> dict:
    """One model trained, where it is not there already, and asked what was never asked, and what was."""
    arm, (task, rows) = ARMS[name], made(plan, seed, folder)
    place = folder / (name if arm.share else arm.parent)
    if arm.share:
        given = {"steps": arm.share * plan.steps, "rows": plan.rows, "lr": plan.lr, "seed": seed, "data": rows}
        given |= {"parent": str(folder / arm.parent)} if arm.parent else {}
        recipe, known = Recipe.read(RECIPE, objective=arm.objective, **given), place / "recipe.toml"
        if not (place / "model.safetensors").exists() or known.read_text(encoding="utf-8") != recipe.toml():
            trained(recipe, place)
    candidate = Candidate(name, *hub.load(str(place)))
    if arm.whole:
        candidate.model.attention = FULL
    questions = task.pool("test")
    taught = [each for each in task.pool("train") if each.kind in KINDS][: 2 * TAUGHT]
    return {
        "arm": asdict(arm),
        "seed": seed,
        "pairs": len(questions) // 2,
        "parameters": sum(each.numel() for each in candidate.model.parameters()),
        "positions": shares(name) * plan.steps * plan.rows * Recipe.read(RECIPE).length,
        "question": right(candidate, task, questions),
        "blank": right(candidate, task, blanks(questions)),
        "taught": right(candidate, task, taught),
        **stamp(),
    }


def shares(name: str) -> int:
    """How many times the parent's updates an arm has behind it, those of what it begins from included."""
    arm = ARMS[name]
    return arm.share + (shares(arm.parent) if arm.parent else 0)


def trained(recipe: Recipe, out: Path) -> None:
    """What `unveil train` makes of a recipe."""
    ready, quiet = start(recipe), Console(file=io.StringIO())
    data = ready.corpus.train
    train(ready.model, ready.objective, data, ready.recipe, out=out, text=ready.text, overwrite=True, console=quiet)


def finished(name: str, plan: Plan, seed: int, folder: Path, training: bool = True) -> dict:
    """A run, or what an earlier one left, after those that it begins from; {} where there is none and no training."""
    path = folder / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if kept.get("arm") != asdict(ARMS[name]):
        if not training:
            return {}
        if ARMS[name].parent:
            finished(ARMS[name].parent, plan, seed, folder)
        put(path, json.dumps(kept := run(name, plan, seed, folder)) + "\n")
    return kept


def blanks(questions: Sequence[Example]) -> list[Example]:
    """The texts of these pairs, as training has them, without the name that is asked for."""
    found = []
    for each in questions:
        name, answer = each.prompt.split()[1].rstrip(":"), each.answer
        forward = Example(f"pair {name} >", answer, kind="forward")
        found.append(forward if each.kind == "forward" else Example("pair", answer, f" > {name}", kind="reverse"))
    return found


def right(candidate: Candidate, task: Reversal, problems: Sequence[Example]) -> dict[str, list[float]]:
    """What is right in either direction, in the order of the pairs; nothing where a model cannot be asked that way."""
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        some = [each for each in problems if each.kind == kind]
        able = refusal(candidate, task, some, How()) is None
        found[kind] = evaluate(candidate, "reversal", task, some, How()).part.figures["accuracy"] if able else []
    return found


def ratio(forward: NDArray[np.float64], reverse: NDArray[np.float64]) -> Interval | None:
    """Reverse to forward, and a bootstrap over pairs; None where nothing is right forwards."""
    if not forward.any():
        return None
    times = resampled(len(forward), 0)
    right = times @ forward
    low, high = np.quantile((times @ reverse)[right > 0] / right[right > 0], [0.025, 0.975])
    return Interval(float(reverse.sum() / forward.sum()), float(low), float(high))


def share(values: NDArray[np.float64]) -> Interval | None:
    return wilson(values, np.arange(len(values))) if len(values) else None


def told(found: Interval | None, scale: float = 100, digits: int = 1) -> str:
    if found is None:
        return "-"
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*(scale * x for x in (found.mean, found.low, found.high)), d=digits)


def ends(runs: Sequence[dict], side: str) -> dict[str, Interval | None]:
    """Both directions and their ratio, over the pairs of all seeds."""
    forward, reverse = (np.concatenate([np.array(run[side][kind]) for run in runs]) for kind in KINDS)
    found = {"forward": share(forward), "reverse": share(reverse)}
    return found | {"ratio": ratio(forward, reverse) if len(reverse) else None}


def show(report: Report, found: dict[str, list[dict]]) -> dict[str, dict]:
    """The tables, and the numbers in them."""
    one = next(iter(found.values()))
    heads, numbers = ["model", "forward", "reverse", "reverse / forward"], {}
    pairs = " and ".join(str(run["pairs"]) for run in max(found.values(), key=len))
    about = f"{one[0]['parameters'] / 1e6:.1f} M parameters, {pairs} pairs by seed"
    titles = {
        "question": f"Questions of pairs of which none was asked in training; {about}; right, %, with 95 % intervals",
        "blank": "The texts of the same pairs, with a blank for the name",
        "taught": "Questions that training asked",
    }
    for side, title in titles.items():
        lines = []
        for name, runs in found.items():
            some = ends(runs, side)
            numbers.setdefault(name, {})[side] = {key: end and asdict(end) for key, end in some.items()}
            seeds = [
                " / ".join(f"{100 * np.mean(run[side][kind]):.0f}" if run[side][kind] else "-" for run in runs)
                for kind in KINDS
            ]
            cells = [told(some["forward"]), told(some["reverse"]), told(some["ratio"], 1, 2)]
            lines.append([f"{name}: {ARMS[name].told}", *cells, *seeds])
        report.table(title, [*heads, "forward, by seed", "reverse, by seed"], lines)
    lines = [[name, forward, reverse, f"{reverse / forward:.2f}"] for name, (forward, reverse) in PUBLISHED.items()]
    report.table("Published: 496 Chinese couplets, as LLaDA's paper has them", heads, lines)
    return numbers


def main(words: Sequence[str] | None = None) -> None:
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in vars(usual).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="train nothing: collect what is finished")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=WORK, help="folder of models and finished runs; run again, it goes on"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = vars(parser.parse_args(words))
    threads(given["threads"])
    plan = Plan(**{name: given[name] for name in vars(usual)})
    report, found = Report("reversal", given["results"]), {name: [] for name in given["arms"]}
    for seed in range(given["seeds"]):
        for name in given["arms"]:
            one = finished(name, plan, seed, given["work"] / plan.key / str(seed), not given["report"])
            if not one:
                continue
            found[name].append(one)
            means = [100 * np.mean(one["question"][kind]) for kind in KINDS]
            said = "{} of seed {}: forward {:.0f} %, reverse {:.0f} %".format(name, seed, *means)
            report.console.print(said, markup=False, highlight=False)
    found = {name: runs for name, runs in found.items() if runs}
    if not found:
        raise SystemExit(f"no run of this plan is finished in {given['work'] / plan.key}")
    numbers = show(report, found)
    report.write({"plan": asdict(plan), "pooled": numbers, "runs": found})


if __name__ == "__main__":
    main()
