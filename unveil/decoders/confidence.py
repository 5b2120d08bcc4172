"""Commit the surest tokens, an equal share every step (LLaDA, low-confidence remasking)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, quota, top


@dataclass
class Confidence(Decoder):
    """Score: the probability of the chosen token (arXiv 2502.09992, section 2.4)."""

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        return torch.where(top(p, canvas.open & seen.seen, quota(canvas)), token, canvas.seen)
