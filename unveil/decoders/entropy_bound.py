"""Commit as many of the least uncertain tokens as a bound on their dependence allows (EB-Sampler)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, top


@dataclass
class EntropyBound(Decoder):
    """Commits the longest run of the ranking by entropy whose sum of entropies less the largest is at most gamma.

    That difference, in nats, bounds what is lost by writing the positions at once: the divergence of their joint
    distribution from the product of its marginals (arXiv 2505.24857). Gamma 0 writes one token and what is certain.
    Entropies are those of the plain distribution at any temperature: tempered ones vanish as it falls to 0, and then
    everything would be written at once.
    """

    gamma: float = 0.1  # nats

    def __post_init__(self):
        super().__post_init__()
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}; expected 0 (one token a step) or more nats")

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, _ = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        entropy = seen.entropy.clamp(min=0)
        ranked = entropy.masked_fill(~allowed, torch.inf).sort(dim=-1).values
        before = torch.cat([torch.zeros_like(ranked[:, :1]), ranked.cumsum(-1)[:, :-1]], -1)  # the last is the largest
        return torch.where(top(-entropy, allowed, (before <= self.gamma).sum(-1)), token, canvas.seen)
