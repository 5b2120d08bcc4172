"""Decoders and caches measured on a task beside plain ways to decode: quality, passes, speed and memory."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from .. import spec
from ..codecs.text import Text
from ..denoiser import Denoiser
from ..sample import writer
from ..tasks import Example, Task
from .intervals import Interval, paired, wilson
from .problems import Setting, Subject
from .unfinished import Unfinished

SHARES = (2, 4, 8)  # plain truncation: so many times fewer steps than positions
LEAST = 10  # problems of a seed
Role = Literal["vanilla", "fewer steps", "autoregressive", "decoder"]
Report = Callable[[int, int, str], None]
"""Told how many problems have been decoded, of how many, and how."""


@dataclass(frozen=True)
class Arm:
    """A way to decode that is measured."""

    setting: Setting
    subject: Subject
    role: Role = "decoder"

    @property
    def name(self) -> str:
        match self.role:
            case "vanilla" | "autoregressive":
                return self.role
            case "fewer steps":
                few = self.setting.steps == 1
                return f"{self.setting.decoder}, {self.setting.steps} step{'' if few else 's'} a block"
        return f"{self.setting.decoder} with {self.setting.cache}"


@dataclass(frozen=True)
class Skipped:
    """A combination that the library refuses."""

    decoder: str  # "any": no decoder can be had with this cache
    cache: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """What an arm gave and took. Shapes: S draws of the test set, N problems each, R runs."""

    arm: Arm
    scores: NDArray[np.float64]  # (S, N)
    tokens: NDArray[np.int64]  # (S, N) written, up to and with the end of the text
    forwards: NDArray[np.int64]  # (S, N) model calls of each problem by itself
    speeds: list[float]  # (R,) tokens per second, one problem after the other
    memory: int  # most bytes at one time, beside the weights

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def speed(self) -> float:
        """Tokens per second, the median of the runs."""
        return statistics.median(self.speeds)

    @property
    def calls(self) -> float:
        """Model calls per problem."""
        return float(self.forwards.mean())

    @property
    def parallel(self) -> float:
        """Tokens per model call."""
        return float(self.tokens.sum() / self.forwards.sum())


@dataclass
class Bench:
    """All that was measured; the first is vanilla."""

    measured: list[Measured]
    skipped: list[Skipped]
    problems: NDArray[np.int64]  # (S, N) equal numbers: the same problem

    @property
    def vanilla(self) -> Measured:
        return self.measured[0]

    @property
    def autoregressive(self) -> Measured | None:
        return next((one for one in self.measured if one.arm.role == "autoregressive"), None)

    @property
    def sample(self) -> int:
        """Different problems."""
        return len(np.unique(self.problems))

    def quality(self, one: Measured) -> Interval:
        """Mean score."""
        return wilson(one.scores.ravel(), self.problems.ravel())

    @cached_property
    def differences(self) -> list[Interval]:
        """Each one's score less vanilla's on the same problems."""
        flat, base = self.problems.ravel(), self.vanilla.scores.ravel()
        return [paired(one.scores.ravel(), base, flat) for one in self.measured]

    def difference(self, one: Measured) -> Interval:
        return self.differences[next(i for i, each in enumerate(self.measured) if each is one)]

    def gain(self, one: Measured) -> float:
        """How many times as fast as vanilla."""
        return one.speed / self.vanilla.speed

    def front(self, worth: Callable[[Measured], float]) -> list[Measured]:
        """Those that nothing beats in both quality and `worth`, by rising quality."""
        order = sorted(self.measured, key=lambda one: (worth(one), one.scores.mean()), reverse=True)
        found: list[Measured] = []
        for one in order:
            if not found or one.scores.mean() > found[-1].scores.mean():
                found.append(one)
        return found


def arms(
    subject: Subject,
    examples: Sequence[Example],
    decoders: Sequence[str],
    caches: Sequence[str],
    *,
    guide: str | None = None,
    block: int | None = None,
    steps: int | None = None,
    parent: Subject | None = None,
) -> tuple[list[Arm], list[Skipped]]:
    """What is to be measured: vanilla first, fewer steps, autoregressive decoding where it can be, and combinations.

    examples  of the task; the first is what the library is asked whether it decodes in some way
    block   positions per block; None: as the model was trained, or one block
    steps   predictions allowed per block, of the combinations alone
    parent  a subject for autoregressive decoding; None: the model itself, if it is a leader model

    ValueError when a spec is none, or when the model refuses vanilla decoding itself.
    """
    for kind, given in (("decoders", decoders), ("caches", caches), ("guides", [guide] if guide else [])):
        for each in given:
            spec.build(kind, each)
    problem = subject.problem(examples[0])
    filling = bool(examples[0].tail)
    look = subject.look(filling)
    block = look.block if block is None else block
    vanilla = Setting("confidence", look.cache, guide, block)
    if reason := subject.refusal(problem, vanilla):
        raise ValueError(reason)
    found = [Arm(vanilla, subject, "vanilla")]
    blanks = int(statistics.median(subject.problem(example).blanks for example in examples))
    width = min(block or blanks, blanks) - int(look.leads)
    fewer = dict.fromkeys(max(1, width // share) for share in SHARES)
    found += [Arm(replace(vanilla, steps=n), subject, "fewer steps") for n in fewer if n < width]
    kept, skipped = [], []
    if parent is None and look.leads:
        parent = subject
    if parent is not None and filling:
        skipped.append(Skipped("autoregressive", "causal", "it does not look at what follows a blank"))
    elif parent is not None:
        ends = "eos(policy='stop')" if parent.text.eos_id is not None else None  # no other way has it stop
        setting = Setting("confidence", "causal", guide or ends, 1)
        if reason := parent.refusal(parent.problem(examples[0]), setting):
            skipped.append(Skipped("autoregressive", "causal", reason))
        else:
            found.append(Arm(setting, parent, "autoregressive"))
    for cache in dict.fromkeys(caches):
        reason = subject.refusal(problem, replace(vanilla, cache=cache))
        if reason:
            skipped.append(Skipped("any", cache, reason))
        else:
            kept.append(cache)
    known = {arm.setting for arm in found if arm.subject is subject}
    for decoder in dict.fromkeys(decoders):
        for cache in kept:
            setting = Setting(decoder, cache, guide, block, steps)
            if setting in known:
                continue
            if reason := subject.refusal(problem, setting):
                skipped.append(Skipped(decoder, cache, reason))
            else:
                found.append(Arm(setting, subject))
    return found, skipped


def measure(
    arms: Sequence[Arm],
    sets: Sequence[Sequence[Example]],
    *,
    batch: int = 16,
    timed: int = 8,
    runs: int = 3,
    report: Report | None = None,
    kept: Unfinished | None = None,
) -> list[Measured]:
    """Decode every problem in every way.

    sets    (S, N) draws of the test set
    batch   problems decoded together for quality and passes; neither depends on it
    timed   problems of the first set that are timed, one after the other, `runs` times; the arms take turns, so that
            what else the machine does meets them all
    kept    where every figure goes as soon as it is known; what is there already is not measured again

    Memory is that of the first problem.
    """
    for name, given in (("batch", batch), ("timed", timed), ("runs", runs)):
        if given < 1:
            raise ValueError(f"{name} is {given}; expected at least 1")
    flat = [example for one in sets for example in one]
    some = range(min(timed, len(sets[0])))
    total = len(arms) * (1 + len(flat) + runs * len(some))
    done = 0

    def tell(count: int, arm: Arm) -> None:
        nonlocal done
        done += count
        if report:
            report(done, total, arm.name)

    kept = kept or Unfinished()
    known = [kept.of(arm.role, arm.setting) for arm in arms]
    for arm, found in zip(arms, known, strict=True):
        if "memory" not in found:  # also the first use of each, so that what cannot run is known at once
            found["memory"] = arm.subject.memory(arm.subject.problem(flat[0]), arm.setting)
            kept.keep()
        tell(1, arm)
    for run in range(runs):
        for arm, found in zip(arms, known, strict=True):
            speeds = found.setdefault("speeds", [])
            if len(speeds) == run:
                problems = [arm.subject.problem(flat[i]) for i in some]
                tokens, seconds = arm.subject.time(problems, arm.setting, some)
                speeds.append(tokens / seconds)
                kept.keep()
            tell(len(some), arm)
    measured = []
    for arm, found in zip(arms, known, strict=True):
        if "solved" in found:
            tell(len(flat), arm)
        else:
            found["solved"] = solved(arm, flat, batch, tell).tolist()
            kept.keep()
        scores, tokens, forwards = np.array(found["solved"]).reshape(3, len(sets), -1)
        counts = tokens.astype(np.int64), forwards.astype(np.int64)
        measured.append(Measured(arm, scores, *counts, found["speeds"], found["memory"]))
    return measured


def solved(arm: Arm, examples: Sequence[Example], batch: int, tell: Callable[[int, Arm], None]) -> NDArray[np.float64]:
    """(3, N) scores, tokens and forwards of all problems."""
    problems = [arm.subject.problem(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: len(problems[i].row))  # passes of equal width are merged
    columns = np.zeros((3, len(examples)))
    for start in range(0, len(order), batch):
        which = order[start : start + batch]
        for i, out in zip(which, arm.subject.solve([problems[i] for i in which], arm.setting, which), strict=True):
            columns[:, i] = out.score, out.tokens, out.forwards
        tell(len(which), arm)
    return columns


def draws(task: Task, count: int, seeds: int) -> tuple[list[list[Example]], NDArray[np.int64]]:
    """`seeds` test sets of `count` problems, and (S, N) numbers that are equal where problems are.

    ValueError for too few of either.
    """
    if count < LEAST:
        raise ValueError(f"count is {count}; expected at least {LEAST} problems to compare decoders on")
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; expected at least one draw of the test set")
    sets = [task.examples(count, "test", seed) for seed in range(seeds)]
    numbers: dict[Example, int] = {}
    same = [[numbers.setdefault(example, len(numbers)) for example in one] for one in sets]
    return sets, np.array(same)


def token_by_token(model: Denoiser, text: Text) -> Denoiser:
    """An autoregressive parent as the loop can decode it, in blocks of one; a leader model as it is."""
    if model.attention.kind == "leader":
        return model
    if model.attention.kind != "causal":
        raise ValueError(
            "autoregressive decoding needs a model that predicts the next token from those before it, and this one has "
            f"{model.attention.kind} attention"
        )
    follower = writer(model)
    follower.bos_id, follower.eos_id = text.start_id, text.eos_id
    return follower


def machine() -> dict[str, object]:
    """What figures of speed depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # processes, the minute before
        "torch": torch.__version__,
    }
