"""Reveal blanks in random order, each a draw from the model (the ancestral sampler of DiffuGPT and DiffuLLaMA)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..canvas import Canvas
from ..noise import uniform
from ..prediction import Prediction
from . import Decoder

REVEAL = 2  # keys the noise that orders positions


@dataclass
class Random(Decoder):
    """With t steps left a blank is revealed with probability 1/t and keeps its draw (arXiv 2410.17891, sampler A).

    That makes the step at which a blank is revealed uniform over the steps and independent of all else, so it is drawn
    at once; a step that would reveal nothing in any row changes nothing and is skipped, which saves its forward. More
    steps than a row has positions would be skipped in the same way, so they are not counted.
    """

    temperature: float = field(default=1.0, kw_only=True)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, _ = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        place = canvas.window.positions(token.device)
        moment = (uniform(canvas.seeds[:, None], REVEAL, place) * canvas.patience).floor()
        soonest = moment.masked_fill(~allowed, torch.inf).amin(-1, keepdim=True)
        return torch.where(allowed & (moment == soonest), token, canvas.seen)
