"""Fits Prophet's levels to a model and its data: how wide the gap is once the answer no longer changes.

Shapes: B rows of one canvas, L positions, M predictions made for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import spec
from ..caches import Cache
from ..canvas import Canvas
from ..decoders.prophet import CERTAIN, Prophet
from ..denoiser import Denoiser
from ..prediction import Prediction
from ..sample import denoise

TRACES = 50
"""Fewer rows than this say too little of how often a commit would have been right; about 200 are better."""


@dataclass(frozen=True)
class Levels:
    """The gaps, in logits, from which on the answer was already final, and what they rest on.

    A level is inf where no gap was wide enough: there Prophet commits nothing.
    """

    high: float
    mid: float
    low: float
    traces: int  # rows decoded
    steps: tuple[int, int, int]  # predictions with a region that could be judged, early, middle and late
    above: tuple[int, int, int]  # those of them that reach the level
    final: tuple[int, int, int]  # those of them that reach it and already have the final answer
    committed: float  # share of the rows that these levels commit early
    right: float  # share of those that then have the answer they had at one token a step; nan without any
    saved: float  # share of all predictions that they spare

    @property
    def options(self) -> dict[str, float]:
        """What Prophet is to be given."""
        return {"high": self.high, "mid": self.mid, "low": self.low}


@dataclass(frozen=True)
class Moment:
    """What one prediction said of every row."""

    active: Tensor  # (B,) the row had a use for it
    progress: Tensor  # (B,)
    gap: Tensor  # (B,) mean over the region; -inf: not judged
    region: Tensor  # (B, L)
    line: Tensor  # (B, L) what is written, and guessed elsewhere


@dataclass
class Witness(Prophet):
    """Prophet that never commits early, and writes down what it sees."""

    moments: list[Moment] = field(init=False, repr=False)

    def begin(self, canvas: Canvas) -> None:
        super().begin(canvas)
        self.moments = []

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        gap, region, line = self.judge(canvas, seen)
        self.moments.append(Moment(canvas.open.any(1), self.progress(canvas), gap, region, line))
        return super().write(canvas, seen)


@dataclass(frozen=True)
class Trace:
    """The predictions of one canvas, row by row."""

    active: Tensor  # (B, M)
    progress: Tensor  # (B, M)
    gap: Tensor  # (B, M)
    final: Tensor  # (B, M) the answer as guessed then is the answer in the end


def fit(
    model: Denoiser,
    rows: Sequence[Tensor],
    length: int | None = None,
    prophet: Prophet | str = "prophet",
    *,
    agreement: float = 0.95,
    block: int | None = None,
    cache: Cache | str = "recompute",
    together: int = 16,
) -> Levels:
    """Decode `rows` at one token a step, at temperature 0, and choose the level of each phase.

    A level is the smallest gap such that of the predictions in its phase whose mean gap over the answer region reaches
    it, at least the share `agreement` already had the final answer: the same region, with the same tokens. Of a phase
    without such a gap the level is inf. Predictions after the region was written count neither way.

    rows       prompts, one (P,) tensor each, to be followed by `length` blanks; without `length`, sequences whose
               blanks hold the mask id (so that an anchor can stand in its place)
    prophet    where the answer is and how phases are cut: region, anchor, at, count, masked_only, early, late; what it
               says of levels and of `inner` is not used
    agreement  share of the predictions, above 0 and at most 1
    block      positions per block, as for decoding; so too the cache
    together   rows decoded in one batch

    ValueError with fewer than `TRACES` rows.
    """
    if len(rows) < TRACES:
        raise ValueError(f"{len(rows)} traces are too few to fit levels to; expected at least {TRACES}, better 200")
    if not 0 < agreement <= 1:
        raise ValueError(f"agreement is {agreement}; expected a share above 0 and at most 1")
    if together < 1:
        raise ValueError(f"together is {together}; expected at least one row a batch")
    given: Prophet = spec.build("decoders", prophet) if isinstance(prophet, str) else prophet
    if not isinstance(given, Prophet):
        raise ValueError(f"{prophet!r} is another decoder; expected prophet, with its answer region")
    witness = Witness(
        **{name: getattr(given, name) for name in ("early", "late", "region", "anchor", "at", "count", "masked_only")},
        high=math.inf,
        mid=math.inf,
        low=math.inf,
    )
    found = list(traces(model, rows, length, witness, block, cache, together))
    return choose(found, given, agreement)


def traces(
    model: Denoiser,
    rows: Sequence[Tensor],
    length: int | None,
    witness: Witness,
    block: int | None,
    cache: Cache | str,
    together: int,
) -> Iterator[Trace]:
    """Batches of rows, each decoded to its end."""
    for start in range(0, len(rows), together):
        long = [row.long() for row in rows[start : start + together]]
        seeds = torch.zeros(len(long), dtype=torch.long)
        canvas = (
            Canvas.filling(long, model.mask_id, seeds)
            if length is None
            else Canvas.answering(long, length, model.mask_id, seeds)
        )
        for _ in denoise(model, canvas, witness, cache=cache, block=block):
            pass
        last = witness.span(canvas, canvas.tokens)
        if witness.region == "blank":
            last = torch.zeros_like(last)  # all of it was a blank once; each prediction speaks for what then was
        moments = witness.moments
        differs = [((m.line != canvas.tokens) & (m.region | last)).any(1) for m in moments]
        yield Trace(
            torch.stack([m.active for m in moments], 1).cpu(),
            torch.stack([m.progress for m in moments], 1).cpu(),
            torch.stack([m.gap for m in moments], 1).cpu(),
            ~torch.stack(differs, 1).cpu(),
        )


def choose(found: Sequence[Trace], prophet: Prophet, agreement: float) -> Levels:
    """The levels, and what they would have done on the same traces."""
    phases = [prophet.phase(trace.progress) for trace in found]
    judged = [trace.active & (trace.gap > -torch.inf) & (trace.gap < CERTAIN) for trace in found]
    levels, steps, above, final = [], [], [], []
    for number in range(3):
        which = [good & (cut == number) for good, cut in zip(judged, phases, strict=True)]
        gap = torch.cat([trace.gap[here] for trace, here in zip(found, which, strict=True)])
        right = torch.cat([trace.final[here] for trace, here in zip(found, which, strict=True)])
        level = lowest(gap, right, agreement)
        levels.append(level)
        steps.append(len(gap))
        above.append(int((gap >= level).sum()))
        final.append(int(right[gap >= level].sum()))
    committed = correct = spared = total = 0
    for trace, cut in zip(found, phases, strict=True):
        fires = trace.active & (trace.gap >= torch.tensor(levels)[cut])
        after = fires.cumsum(1) > 0
        begins = fires & (after.cumsum(1) == 1)
        early = begins & ((trace.active & after).sum(1, keepdim=True) > 1)  # on the last prediction nothing is gained
        committed += int(early.sum())
        correct += int((early & trace.final).sum())
        spared += int((trace.active & after & ~begins).sum())
        total += int(trace.active.sum())
    rows = sum(len(trace.active) for trace in found)
    return Levels(
        *levels,
        traces=rows,
        steps=(steps[0], steps[1], steps[2]),
        above=(above[0], above[1], above[2]),
        final=(final[0], final[1], final[2]),
        committed=committed / rows,
        right=correct / committed if committed else math.nan,
        saved=spared / total,
    )


def lowest(gap: Tensor, right: Tensor, agreement: float) -> float:
    """The smallest observed (n,) gap from which on at least the share `agreement` of the n were right; inf: none."""
    gap, order = gap.sort(descending=True)
    share = right[order].double().cumsum(0) / torch.arange(1, len(gap) + 1)
    last = torch.ones_like(order, dtype=torch.bool)
    last[:-1] = gap[:-1] != gap[1:]  # equal gaps are above a level together
    enough = gap[last & (share >= agreement)]
    return float(enough[-1]) if len(enough) else math.inf
