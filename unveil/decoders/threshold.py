"""Commit every token surer than a threshold, and at least one (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, above


@dataclass
class Threshold(Decoder):
    """Commits p >= tau and the best one (arXiv 2505.22618, section 3.3)."""

    tau: float = 0.9

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        return torch.where(above(p, canvas.open & seen.seen, self.tau), token, canvas.seen)
