"""Commit as many of the surest tokens as their joint likelihood allows (Fast-dLLM, the factor rule)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, top


@dataclass
class Factor(Decoder):
    """Commits the longest run n of the ranking by probability with (n + 1) (1 - p(n)) <= f (arXiv 2505.22618, 3.3).

    Rank 1 always passes. For f <= 1 the tokens committed together are a likeliest tuple of the joint distribution of
    their positions, given what was written before; for f < 1 the only one. Above 1 nothing is promised.
    """

    f: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.f < 0:
            raise ValueError(f"f is {self.f}; expected 0 or more: up to 1 keeps the guarantee, less is more careful")

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        ranked = p.masked_fill(~allowed, -torch.inf).sort(dim=-1, descending=True).values
        rank = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
        count = ((rank + 1) * (1 - ranked) <= self.f).sum(-1).clamp(min=1)  # the left side grows with the rank
        return torch.where(top(p, allowed, count), token, canvas.seen)
