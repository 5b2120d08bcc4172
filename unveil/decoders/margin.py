"""Commit the tokens whose lead over the runner-up is widest, an equal share every step (Dream, topk_margin)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, quota, top


@dataclass
class Margin(Decoder):
    """Score: probability of the best token less that of the second (arXiv 2502.06768)."""

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, _ = seen.choose(self.temperature, self.top_p)
        return torch.where(top(seen.margin, canvas.open & seen.seen, quota(canvas)), token, canvas.seen)
