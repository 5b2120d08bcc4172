"""The reversal curse: pairs seen one way round, asked both ways of autoregressive, masked and adapted models."""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from measure import RESULTS, ROOT, Report, put, stamp, threads
from numpy.typing import NDArray
from rich.console import Console

from unveil import hub, spec
from unveil.evaluate.intervals import Interval, resampled, wilson
from unveil.evaluate.suite import Candidate, How, evaluate
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
    """A model: what it is trained by, from what, and for how many times the parent's updates."""

    objective: str
    parent: str = ""
    share: int = 1


ARMS = {
    PARENT: Arm(AR),
    "continued": Arm(AR, PARENT),
    "masked": Arm("masked", share=2),
    "full": Arm("adapt(anneal=0.3)", PARENT),
    "leader2": Arm("leader(n=2)", PARENT),
    "leader5": Arm("leader(n=5)", PARENT),
}
TOLD = {
    PARENT: "autoregressive, half the tokens",
    "continued": "autoregressive",
    "masked": "masked, from random weights",
    "full": "adapted: full attention, shifted",
    "leader2": "adapted: leader, blocks of 3 (one name each)",
    "leader5": "adapted: leader, one block of 6 (both names)",
}


@dataclass(frozen=True)
class Plan:
    """How much is trained and on what."""

    pairs: int = 300
    steps: int = 500
    rows: int = 160
    lr: float = 4e-3

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
    lines = (json.dumps({"prompt": each.prompt, "response": each.answer}) + "\n" for each in rows)
    return task, str(put(folder / "pairs.jsonl", "".join(lines)))


def run(name: str, plan: Plan, seed: int, folder: Path) -> dict:
    """One model trained, and asked what was never asked, and what was."""
    arm, (task, rows) = ARMS[name], made(plan, seed, folder)
    given = {"steps": arm.share * plan.steps, "rows": plan.rows, "lr": plan.lr, "seed": seed, "data": rows}
    given |= {"parent": str(folder / arm.parent)} if arm.parent else {}
    recipe = Recipe.read(RECIPE, objective=arm.objective, **given)
    began, cpu = time.perf_counter(), time.process_time()
    ready = start(recipe)
    history = train(
        ready.model,
        ready.objective,
        ready.corpus.train,
        ready.recipe,
        out=folder / name,
        text=ready.text,
        overwrite=True,
        console=Console(file=io.StringIO()),
    ).history
    spent, updates = time.process_time() - cpu, (arm.share + bool(arm.parent)) * plan.steps
    candidate = Candidate(name, *hub.load(str(folder / name)))
    taught = [each for each in task.pool("train") if each.kind in KINDS][: 2 * TAUGHT]
    return {
        "arm": asdict(arm),
        "seed": seed,
        "parameters": sum(each.numel() for each in candidate.model.parameters()),
        "positions": updates * recipe.rows * recipe.length,  # of the parent and of this run
        "loss": next(line["loss"] for line in reversed(history) if "loss" in line),
        "unseen": asked(candidate, task, task.pool("test")),
        "taught": asked(candidate, task, taught),
        "processor_seconds": spent,
        "seconds": time.perf_counter() - began,
        **stamp(),
    }


def asked(candidate: Candidate, task: Reversal, problems: Sequence[Example]) -> dict[str, list[float]]:
    """What is right of the questions of either direction, in the order of the pairs."""
    found = evaluate(candidate, "reversal", task, problems, How())
    values = found.values("accuracy")
    return {kind: [float(v) for v, k in zip(values, found.kinds, strict=True) if k == kind] for kind in KINDS}


def ratio(forward: NDArray[np.float64], reverse: NDArray[np.float64]) -> Interval | None:
    """Reverse to forward, and a bootstrap over pairs; None where nothing is right forwards."""
    if not forward.any():
        return None
    times = resampled(len(forward), 0)
    right = times @ forward
    low, high = np.quantile((times @ reverse)[right > 0] / right[right > 0], [0.025, 0.975])
    return Interval(float(reverse.sum() / forward.sum()), float(low), float(high))


def share(values: NDArray[np.float64]) -> Interval:
    return wilson(values, np.arange(len(values)))


def told(found: Interval | None, scale: float = 100, digits: int = 1) -> str:
    if found is None:
        return "-"
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*(scale * x for x in (found.mean, found.low, found.high)), d=digits)


def pooled(runs: Sequence[dict], side: str, kind: str) -> NDArray[np.float64]:
    """All seeds' scores, one behind the other."""
    return np.concatenate([np.array(each[side][kind]) for each in runs])


def show(report: Report, found: dict[str, list[dict]]) -> dict[str, dict]:
    """The tables, and the numbers in them."""
    lines, numbers = [], {}
    for name, runs in found.items():
        forward, reverse = (pooled(runs, "unseen", kind) for kind in KINDS)
        ends = {"forward": share(forward), "reverse": share(reverse), "ratio": ratio(forward, reverse)}
        numbers[name] = {key: end and asdict(end) for key, end in ends.items()}
        per = [" / ".join(f"{100 * np.mean(run['unseen'][kind]):.0f}" for run in runs) for kind in KINDS]
        taught = [f"{100 * pooled(runs, 'taught', kind).mean():.0f}" for kind in KINDS]
        lines.append(
            [f"{name}: {TOLD[name]}", told(ends["forward"]), told(ends["reverse"]), told(ends["ratio"], 1, 2),
             *per, *taught, sum(run["processor_seconds"] for run in runs) / len(runs)]
        )  # fmt: skip
    one = next(iter(found.values()))
    title = (
        f"{len(pooled(one, 'unseen', 'forward'))} pairs of {len(one)} seeds whose questions were never asked, "
        f"{one[0]['parameters'] / 1e6:.1f} M parameters; right, %, with 95 % intervals"
    )
    heads = ["model", "forward", "reverse", "reverse / forward", "forward by seed", "reverse by seed"]
    report.table(title, [*heads, "taught: forward", "reverse", "CPU seconds"], lines)
    lines = [[name, forward, reverse, f"{reverse / forward:.2f}"] for name, (forward, reverse) in PUBLISHED.items()]
    report.table("published: 496 Chinese couplets, as LLaDA's paper has them", heads[:4], lines)
    return numbers


def main(words: Sequence[str] | None = None) -> None:
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in vars(usual).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
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
            folder = given["work"] / plan.key / str(seed)
            for each in dict.fromkeys((ARMS[name].parent or name, name)):
                path = folder / f"{each}.json"
                if not path.exists():
                    put(path, json.dumps(run(each, plan, seed, folder)) + "\n")
            found[name].append(one := json.loads(path.read_text(encoding="utf-8")))
            means = [100 * np.mean(one["unseen"][kind]) for kind in KINDS]
            said = "seed {}, {}: forward {:.0f} %, reverse {:.0f} %, {:.0f} s".format(
                seed, name, *means, one["seconds"]
            )
            report.console.print(said, markup=False, highlight=False)
    numbers = show(report, found)
    report.write({"plan": asdict(plan), "arms": {name: TOLD[name] for name in found}, "pooled": numbers, "runs": found})


if __name__ == "__main__":
    main()
