"""Reveal blanks one at a time in uniformly random order, each a draw (the first-hitting sampler)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..canvas import Canvas
from ..noise import uniform
from ..prediction import Prediction
from . import Decoder, top

REVEAL = 2  # keys the noise that orders positions


@dataclass
class FirstHitting(Decoder):
    """The reverse process of masked diffusion without its clock (Zheng et al., arXiv 2409.02908).

    There the time at which the next blank is revealed is drawn analytically, and the blank is any of those left. The
    model is not told the time, so the times change nothing: what is left is a uniformly random order, which is drawn at
    once, and no discretisation error. `tokens` at a time is their parallel variant, no longer exact. With blocks the
    order is random within each. A temperature other than 1 draws from another model.
    """

    tokens: int = 1
    temperature: float = field(default=1.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}; expected at least one a step")

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, _ = seen.choose(self.temperature, self.top_p)
        soon = -uniform(canvas.seeds[:, None], REVEAL, canvas.window.positions(token.device))
        return torch.where(top(soon, canvas.open & seen.seen, self.tokens), token, canvas.seen)
