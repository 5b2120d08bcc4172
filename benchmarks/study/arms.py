"""The arms of the adaptation study, and one run of one of them."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from rich.console import Console

from unveil import hub
from unveil.data import Packed, prepare
from unveil.denoiser import Denoiser
from unveil.evaluate.samples import appraise
from unveil.nn.grow import bare
from unveil.objectives import Batch
from unveil.start import Start, start
from unveil.train import Recipe, train

from .scores import Truth, autoregression, infilling, likelihood, sampling

EARLY = 200  # updates over which the peak of the gradient norm is taken
SIZES = (4, 16)  # a leader model is asked in blocks of each, whatever it was trained in


@dataclass(frozen=True)
class Arm:
    """What one arm does; in nothing else do arms differ."""

    objective: str  # a spec string; empty: nothing is trained
    about: str
    shift: str = "auto"  # as in a recipe
    slow: float = 1.0  # multiplies the learning rate of MLPs and embeddings
    random: bool = False  # random weights in the parent's shape
    full: bool = False  # is it trained under full attention, in all steps or in some?
    cost: float = 1.0  # of a step, about
    usual: bool = True  # is it run unless others are asked for?

    @property
    def control(self) -> bool:
        """Is it autoregressive, and scored exactly?"""
        return self.objective in ("", "autoregressive")


ARMS = {
    "parent": Arm("", "the parent as it is", cost=0.3),
    "continued": Arm("autoregressive", "the parent, next-token prediction on the same tokens"),
    "random": Arm("adapt(hard=True)", "random weights, full attention, shift", random=True, full=True),
    "seed": Arm("adapt(anneal=0.3)", "attention annealed over 30 % of training, shift", full=True, cost=1.2),
    "noshift": Arm("adapt(hard=True)", "full attention from the first step, no shift", shift="no", full=True),
    "hard": Arm("adapt(hard=True)", "full attention from the first step, shift", full=True),
    "block4": Arm("block(size=4)", "blocks of 4, clean block-causal context, no shift", cost=2.0),
    "block16": Arm("block(size=16)", "blocks of 16, clean block-causal context, no shift", cost=2.0),
    "leader4": Arm("leader(n=4, full=0)", "leader, n = 4, grown from 1 over 40 % of training", cost=2.3),
    "leader16": Arm("leader(n=16, full=0)", "leader, n = 16, grown from 1 over 40 % of training", cost=2.3),
    "leader16full": Arm(
        "leader(n=16)", "leader, n = 16, then a quarter of steps under full attention", full=True, cost=2
    ),
    # What may change leader16, one thing at a time: from the first of these on, nothing is grown.
    "ungrown": Arm("leader(n=16, full=0, grow=0)", "leader, n = 16 from the first step", cost=2.3, usual=False),
    "ungrown-noar": Arm("leader(n=16, full=0, grow=0, ar=0)", "without the autoregressive loss", cost=2.3, usual=False),
    "ungrown-ar": Arm("leader(n=16, full=0, grow=0, ar=1)", "autoregressive loss of weight 1", cost=2.3, usual=False),
    "ungrown-kl": Arm("leader(n=16, full=0, grow=0, kl=0.5)", "with KL to the frozen parent", cost=2.6, usual=False),
    "ungrown-align": Arm(
        "leader(n=16, full=0, grow=0, align=1)", "states drawn to the parent's", cost=2.6, usual=False
    ),
    "ungrown-slow": Arm(
        "leader(n=16, full=0, grow=0)", "MLPs and embeddings at 0.3 of the rate", slow=0.3, cost=2.3, usual=False
    ),
    "ungrown-half": Arm(
        "leader(n=16, full=0.5, grow=0)", "half of all steps under full attention", full=True, cost=1.8, usual=False
    ),
    "mixed": Arm(
        "leader(n=16, full=0.5, grow=0, ar=1)",
        "both: half full, and autoregressive loss of weight 1",
        full=True,
        cost=1.8,
        usual=False,
    ),
}
USUAL = [name for name, arm in ARMS.items() if arm.usual]


@dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers of a study besides arm and seed."""

    parent: str
    data: tuple[str, ...]
    eval_data: tuple[str, ...] = ()  # none: the documents of `data` that are held out
    steps: int = 300
    rows: int = 32
    length: int = 128
    lr: float = 1e-3
    windows: int = 256  # rows of the final scores
    draws: int = 2
    curve_every: int = 50  # steps between two points of the curve
    curve_windows: int = 64
    infills: int = 128  # stories with a blank; 0: nothing is filled in or written
    blank: int = 8  # tokens in a blank
    samples: int = 32  # texts per point
    sample_steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    temperatures: tuple[float, ...] = (0.8, 1.0)
    dtype: str = "float32"  # of training, as in a recipe; models are measured in float32

    @property
    def key(self) -> str:
        """Names the folder of its results: another plan never reads them."""
        # One string for all sources, as when they were named by one: finished runs are found under it.
        sources = {name: joined(getattr(self, name)) for name in ("data", "eval_data")}
        told = {**asdict(self), **sources}
        if self.dtype == "float32":  # likewise
            del told["dtype"]
        return blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=6).hexdigest()

    def recipe(self, arm: Arm, seed: int) -> Recipe:
        return Recipe(
            parent=self.parent,
            data=self.data,
            objective=arm.objective or "autoregressive",
            shift=arm.shift,
            steps=self.steps,
            rows=self.rows,
            length=self.length,
            lr=self.lr,
            seed=seed,
            dtype=self.dtype,
            mlp_lr=arm.slow,
            embedding_lr=arm.slow,
            eval_every=self.curve_every,
            save_every=0,
            keep=1,
        )


def joined(sources: Sequence[str]) -> str:
    """With commas between them; those that are part of a name are marked."""
    return ",".join(name.replace(",", "\\,") for name in sources)


@dataclass(frozen=True)
class Texts:
    """What models are judged on."""

    held_out: Packed  # of the text they were adapted to
    judged: Packed  # of the text they are evaluated on


def texts(plan: Plan, made: Start) -> Texts:
    if not plan.eval_data:
        return Texts(made.corpus.held_out, made.corpus.held_out)
    other = prepare(plan.eval_data, made.text, held_out=0)
    return Texts(made.corpus.held_out, other.train)


def run(name: str, seed: int, plan: Plan, models: Path | None = None) -> dict:
    """Train the arm with the library's own loop, and measure what came of it; `models` keeps it as a checkpoint."""
    began = time.perf_counter()
    arm = ARMS[name]
    recipe = plan.recipe(arm, seed)
    made = start(recipe)
    model = made.model
    if arm.random:
        bare(model).initialise(torch.Generator().manual_seed(seed))
    seen = texts(plan, made)
    few = seen.judged.windows(plan.length, plan.curve_windows)

    def point(model: Denoiser) -> dict[str, float]:
        own = likelihood(model, few, 2, exact=arm.control)["nats"]
        return {"held_out": own, **{which: one["nats"] for which, one in elsewhere(model, few, 2).items()}}

    if arm.objective:
        with tempfile.TemporaryDirectory() as out:
            options = {"out": Path(out) / "run", "text": made.text, "console": Console(file=io.StringIO())}
            done = train(model, made.objective, made.corpus.train, recipe, evaluate=point, **options)
            history = done.history
    else:
        history = [{"step": 0, "tokens": 0, **point(model)}]
    trained = time.perf_counter()
    if models is not None:
        hub.save(model, models / f"{name}-{seed}", made.text, overwrite=True)
    parent = hub.load_model(plan.parent)
    found = measure(model.eval(), parent, arm, plan, seen, made, seed)
    points = [line for line in history if "held_out" in line]
    others = [which for which in points[0] if which.startswith("blocks_") or which == "whole"]
    curve = [(line["tokens"], line["held_out"]) for line in points]
    norms = [line["grad_norm"] for line in history if "grad_norm" in line]
    return {
        "arm": name,
        "about": arm.about,
        "seed": seed,
        "tokens": curve[-1][0],
        "curve": curve,
        "curves": {which: [(line["tokens"], line[which]) for line in points] for which in others},
        "before": curve[0][1],
        "grad_norm_peak": max(norms[:EARLY], default=None),
        "losses": [line["loss"] for line in history if "loss" in line],
        "grad_norms": norms,
        "tokens_per_second": curve[-1][0] / (trained - began),
        "seconds": time.perf_counter() - began,
        **found,
    }


def measure(
    model: Denoiser, parent: Denoiser, arm: Arm, plan: Plan, seen: Texts, made: Start, seed: int
) -> dict[str, object]:
    """Every figure of a finished model."""
    judged = seen.judged.windows(plan.length, plan.windows)
    own = seen.held_out.windows(plan.length, plan.windows // 2)
    found: dict[str, object] = {
        "score": likelihood(model, judged, plan.draws, exact=arm.control),
        "score_on_its_own": likelihood(model, own, plan.draws, exact=arm.control),
        "autoregressive": autoregression(model, judged, made.text.eos_id),
    }
    found["elsewhere"] = elsewhere(model, judged, plan.draws)
    if not plan.infills:
        return found
    truth = Truth.of(seen.judged, plan.length, plan.infills)
    found["infill"] = infilling(model, truth, plan.blank, arm.control, arm.full)
    found["real"] = appraise(parent, truth.rows, made.text.eos_id)
    found["samples"] = [
        point
        for temperature in plan.temperatures
        for point in sampling(model, parent, made.text, plan, temperature, 1000 * seed, arm.control)
    ]
    return found


def elsewhere(model: Denoiser, batch: Batch, draws: int) -> dict[str, dict]:
    """The bounds of a leader model in blocks of every size and as whole texts; of other models none."""
    if model.attention.kind != "leader":
        return {}
    found = {f"blocks_{n}": likelihood(model, batch, draws, exact=False, block=n + 1) for n in SIZES}
    return {**found, "whole": likelihood(model, batch, draws, exact=False, block=0)}


def jobs(names: Sequence[str], seeds: int, plan: Plan, folder: Path) -> list[tuple[float, str, int, Path]]:
    """All runs of a study, the costliest first. The parent is the same for every seed."""
    every = [(name, seed) for seed in range(seeds) for name in names if name != "parent" or seed == 0]
    found = [(ARMS[name].cost, name, seed, place(folder, plan, name, seed)) for name, seed in every]
    return sorted(found, key=lambda job: (-job[0], job[2], job[1]))


def place(folder: Path, plan: Plan, name: str, seed: int) -> Path:
    """Where a run's numbers lie."""
    return folder / plan.key / f"{name}-{seed}.json"


def shard(every: Sequence[tuple[float, str, int, Path]], number: int, count: int) -> list[tuple[str, int, Path]]:
    """The part of process `number` of `count`, which all have about the same to do, whatever is finished already."""
    loads, mine = [0.0] * count, []
    for cost, name, seed, path in every:
        least = loads.index(min(loads))
        loads[least] += cost
        if least == number:
            mine.append((name, seed, path))
    return mine
