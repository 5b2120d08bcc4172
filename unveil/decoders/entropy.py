"""Commit the tokens whose distribution is least uncertain, an equal share every step (Dream, entropy)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, quota, top


@dataclass
class Entropy(Decoder):
    """Score: the negative entropy in nats. Its sign matters: the positive one would commit the least certain first."""

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, _ = seen.choose(self.temperature, self.top_p)
        return torch.where(top(-seen.entropy, canvas.open & seen.seen, quota(canvas)), token, canvas.seen)
