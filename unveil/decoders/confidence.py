"""Commit the surest tokens, an equal share every step (LLaDA, low-confidence remasking)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import RESAMPLE, Prediction
from . import Decoder, quota, top


@dataclass
class Confidence(Decoder):
    """Score: the probability of the chosen token (arXiv 2502.09992, section 2.4).

    Above temperature 0 this prefers positions that happened to draw a likely token, so the text is less varied than the
    model. With `resample` the chosen positions draw once more, which takes that bias away (arXiv 2605.12522).
    """

    resample: bool = False  # draw the tokens of the chosen positions anew

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        chosen = top(p, canvas.open & seen.seen, quota(canvas))
        if self.resample:
            token, _ = seen.choose(self.temperature, self.top_p, RESAMPLE)
        return torch.where(chosen, token, canvas.seen)
