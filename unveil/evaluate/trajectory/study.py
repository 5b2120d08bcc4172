"""All runs of a study, each kept as a file so that one that was stopped goes on, and everything measured on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...denoiser import Denoiser
from . import perturbation, recording
from .claims import told
from .labels import Labels
from .perturbation import RULES, Perturbation, disturb
from .record import ORDERS, record
from .recording import Recording, joined
from .recovery import recovery
from .resample import Resample, band, interval
from .sensitivity import sensitivity
from .sequences import Sequences
from .settling import settling
from .sureness import sureness

Report = Callable[[str], None]
RUNS = "runs"


@dataclass(frozen=True)
class Plan:
    """What is recorded and measured. ValueError where a number makes no sense."""

    masks: tuple[float, ...] = (0.5, 0.8)
    orders: tuple[str, ...] = ORDERS
    seeds: int = 3
    sequences: int = 24  # of each run
    length: int = 64  # tokens of each
    steps: int = 32
    probed: int = 3600  # positions of which states are kept, over all seeds; 0: no probes
    probe_steps: int = 5  # at which they are, evenly spread
    types: int = 100  # tokens that a probe tells apart
    perturbed: int = 8  # sequences of each run that are perturbed; 0: none
    perturb_steps: int = 5  # at which, evenly spread
    share: float = 0.15  # of what is written, masked again
    more: int = 8  # further steps by the rule "more"

    def __post_init__(self):
        for name in ("seeds", "sequences", "types"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("probed", "perturbed", "more"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not self.masks or not all(0 < mask <= 1 for mask in self.masks):
            raise ValueError(f"masks are {', '.join(map(str, self.masks))}; expected shares above 0 and at most 1")
        if not self.orders or any(order not in ORDERS for order in self.orders):
            raise ValueError(f"orders are {', '.join(self.orders)}; there are: {', '.join(ORDERS)}")
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}; a trajectory has at least 2")
        if self.length < 2:
            raise ValueError(f"length is {self.length}; expected at least 2 tokens, of which one is never masked")
        if not 1 <= self.probe_steps <= self.steps or not 1 <= self.perturb_steps < self.steps:
            raise ValueError(f"steps to probe or perturb at: expected from 1 on and fewer than {self.steps}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected more than 0 and at most 1")

    @property
    def windows(self) -> int:
        """Of text, for all seeds."""
        return self.seeds * self.sequences

    def steps_probed(self) -> np.ndarray:
        return np.unique(np.rint(np.linspace(0, self.steps - 1, self.probe_steps)).astype(int))

    def steps_perturbed(self) -> np.ndarray:
        """Evenly spread between the first and the last step, neither of them."""
        inner = np.linspace(0, self.steps, self.perturb_steps + 2)[1:-1]
        return np.unique(np.clip(np.rint(inner), 1, self.steps - 1).astype(int))


@dataclass(frozen=True)
class Cell:
    """One mask rate and one order."""

    mask: float
    order: str

    @property
    def name(self) -> str:
        return f"mask {self.mask:g}, {self.order}"

    def file(self, folder: Path, seed: int, what: str = "trajectories") -> Path:
        return folder / RUNS / f"mask{self.mask:g}-{self.order}-{seed}-{what}.npz"


def cells(plan: Plan) -> list[Cell]:
    """In the order in which they are measured."""
    return [Cell(mask, order) for mask in plan.masks for order in plan.orders]


def dealt(sequences: Sequences, plan: Plan, seed: int) -> Sequences:
    """The windows of one seed: its own where there are enough, else some that other seeds have too.

    ValueError where there are not even enough for one.
    """
    total = len(sequences.tokens)
    if total < plan.sequences:
        raise ValueError(
            f"the text has {total} windows of {plan.length} tokens that can be labelled, fewer than {plan.sequences}: "
            "lower --sequences or --length"
        )
    if total >= plan.windows:
        return sequences.take(slice(seed, plan.windows, plan.seeds))
    return sequences.take((np.arange(plan.sequences) + seed * plan.sequences) % total)


def observe(
    plan: Plan, model: Denoiser, sequences: Sequences, folder: Path, report: Report, about: dict[str, Any] | None = None
) -> None:
    """Record what is missing. Everything that is done lies in `folder`, so it may be stopped at any time."""
    full = model.attention.kind != "block"
    runs = [(cell, seed) for cell in cells(plan) for seed in range(plan.seeds)]
    for index, (cell, seed) in enumerate(runs, 1):
        place = cell.file(folder, seed)
        if not place.exists():
            mine = dealt(sequences, plan, seed)
            options = {"stated": -(-plan.probed // plan.seeds), "stated_steps": plan.steps_probed()}
            found = record(
                model, mine, mine.hidden(cell.mask, seed), cell.order, plan.steps, seed=seed, batch=32, **options
            )
            Recording(**{**vars(found), "about": {**found.about, "mask": cell.mask, **(about or {})}}).save(place)
            report(f"[{index}/{len(runs)}] recorded {cell.name}, seed {seed}")
        if not plan.perturbed or not full:
            continue
        missing = [rule for rule in RULES if not cell.file(folder, seed, rule).exists()]
        if missing:
            base = recording.load(place)
            for rule in missing:
                options = {"share": plan.share, "more": plan.more, "windows": plan.perturbed}
                found = disturb(model, base, plan.steps_perturbed(), rule, **options)
                found.save(cell.file(folder, seed, rule), {"rule": rule, **asdict(cell), "seed": seed})
            report(f"[{index}/{len(runs)}] perturbed {cell.name}, seed {seed}")


def measured(plan: Plan, labels: Labels, folder: Path, report: Report) -> Iterator[dict[str, Any]]:
    """The figures and claims of each cell, from the files alone."""
    for cell in cells(plan):
        runs = [recording.load(cell.file(folder, seed)) for seed in range(plan.seeds)]
        pooled = joined(runs)
        resample = Resample(pooled.sequence)
        right = resample.mean(pooled.right)
        found: dict[str, Any] = {
            "cell": cell.name,
            **asdict(cell),
            "attention": pooled.about["attention"],
            "sequences": len(np.unique(pooled.sequence)),
            "positions": len(pooled.row),
            "right_in_the_end": told(interval(right[:, -1])),
            "right_by_seed": [float(run.right[:, -1].mean()) for run in runs],
            "right_by_step": [told(each) for each in band(right)],
        }
        found["settling"], claims = settling(pooled, labels, resample)
        found["sureness"], more = sureness(pooled, resample)
        claims += more
        if len(pooled.stated):
            report(f"probing {cell.name}")
            found["recovery"], more = recovery(pooled, labels, types=plan.types)
            claims += more
        rules = {rule: [cell.file(folder, seed, rule) for seed in range(plan.seeds)] for rule in RULES}
        if plan.perturbed and all(path.exists() for paths in rules.values() for path in paths):
            loaded = {rule: [perturbation.load(path) for path in paths] for rule, paths in rules.items()}
            sequence = [
                run.sequence[each.position] for run, each in zip(runs, next(iter(loaded.values())), strict=True)
            ]
            together = {rule: pool(each) for rule, each in loaded.items()}
            found["sensitivity"], more = sensitivity(together, np.concatenate(sequence), plan.steps)
            claims += more
        found["claims"] = [claim.plain() | {"sentence": claim.sentence} for claim in claims]
        report(f"measured {cell.name}")
        yield found


def pool(many: list[Perturbation]) -> Perturbation:
    """Several seeds as one. Positions stay those of their own runs."""
    arrays = {
        name: np.concatenate([getattr(each, name) for each in many]) for name in perturbation.NAMES if name != "steps"
    }
    return Perturbation(steps=many[0].steps, **arrays)
