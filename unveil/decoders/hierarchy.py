"""Commit the best token of every stretch of blanks, to divide and conquer (hierarchy decoding)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, above, top


@dataclass
class Hierarchy(Decoder):
    """Commits p >= high, the best of each run of adjoining blanks if p >= low, and the best of all.

    (OpenReview ZsIQUjQtdW, ICLR 2026.) What stays open is sparse. With `remask`, tokens of the block that have become
    less probable than that go back to blanks, the least probable first, so many that a step still gains a token.
    """

    low: float = 0.62
    high: float = 0.76
    remask: float = 0.0  # 0: what is written stays

    def __post_init__(self):
        super().__post_init__()
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; expected low to be at most high")
        if not 0 <= self.remask <= 1:
            raise ValueError(f"remask is {self.remask}; expected 0 (what is written stays) or a probability up to 1")

    @property
    def revises(self) -> bool:
        return self.remask > 0

    @property
    def takes_back(self) -> bool:
        return self.remask > 0

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        chosen = above(p, allowed, self.high) | (peaks(p, allowed) & (p >= self.low))
        written = torch.where(chosen, token, canvas.seen)
        if not self.remask:
            return written
        level = seen.probability(canvas.seen)
        doubtful = canvas.free & ~canvas.open & seen.seen & (level < self.remask)
        return written.masked_fill(top(-level, doubtful, chosen.sum(-1) - 1), canvas.mask_id)


def peaks(score: Tensor, where: Tensor) -> Tensor:
    """True at the best position of every maximal run of True in (B, W) `where`; of equals the leftmost."""
    run = (where & ~F.pad(where, (1, 0))[:, :-1]).cumsum(-1) * where  # numbered from 1; 0 outside
    level = score.masked_fill(~where, -torch.inf)
    none = level.new_full((len(run), run.shape[1] + 1), -torch.inf)
    best = where & (level == none.scatter_reduce(1, run, level, "amax").gather(1, run))
    place = torch.arange(run.shape[1], device=run.device).expand_as(run)
    beyond = torch.full_like(none, run.shape[1], dtype=torch.long)
    left = beyond.scatter_reduce(1, run, place.masked_fill(~best, run.shape[1]), "amin")
    return best & (place == left.gather(1, run))
