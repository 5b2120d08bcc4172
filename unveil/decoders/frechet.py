"""Commit as many of the surest tokens as Fréchet's bounds on their joint probability allow (Fast-dLLM++)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, top


@dataclass
class Frechet(Decoder):
    """Commits the longest run n of the ranking by probability with L(n) - U(n) > delta (arXiv 2606.02955).

    L(n) = max(0, p(1) + ... + p(n) - (n - 1)) is the least joint probability that the n best tokens can have, and
    U(n) = 1 - p(n) the most that any other tuple of tokens there can have. So for delta >= 0 what is committed together
    is the likeliest tuple. Equal probabilities make it `factor(f=1 - delta)`; otherwise it commits at least as much.
    """

    delta: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        if not -1 <= self.delta <= 1:
            raise ValueError(f"delta is {self.delta}; expected -1 to 1: from 0 on it is guaranteed, 1 writes one token")

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        ranked = p.masked_fill(~allowed, -torch.inf).sort(dim=-1, descending=True).values
        before = torch.arange(ranked.shape[1], device=ranked.device)
        gain = (ranked.cumsum(-1) - before).clamp(min=0) - (1 - ranked)  # falls with the rank
        count = (gain > self.delta).sum(-1).clamp(min=1)
        return torch.where(top(p, allowed, count), token, canvas.seen)
