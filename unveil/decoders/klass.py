"""Commit the tokens whose prediction is sure and has stopped moving; without any, an equal share (KLASS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..history import History
from ..prediction import Prediction
from . import Decoder, quota, top


@dataclass
class Klass(Decoder):
    """Commits p > tau where the last n divergences KL(now || prediction before) are below epsilon (arXiv 2511.05664).

    A row without such a position commits LLaDA's share of its surest tokens. A position's count begins with its first
    prediction, which has none to be compared with: as only the block is predicted, that is when the block begins, and
    a position is ripe at its prediction n + 1 at the earliest. The defaults are the authors' for LLaDA on GSM8K in
    blocks of 64; for Dream they take tau .9, epsilon .001. A comparison across a refresh of a cache counts as any.
    """

    vectors = 1

    tau: float = 0.6
    epsilon: float = 0.015  # nats
    n: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.epsilon < 0:
            raise ValueError(f"epsilon is {self.epsilon}; expected 0 (nothing is ever settled) or more nats")
        if self.n < 1:
            raise ValueError(f"n is {self.n}; expected at least one comparison of a prediction with the one before")

    def begin(self, canvas: Canvas) -> None:
        self.history = History(canvas, 1)
        self.still = torch.zeros_like(canvas.tokens)  # (B, L) comparisons in a row that found no change

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        calm = self.history.divergence(seen).clamp(min=0) < self.epsilon  # rounding may leave it below 0
        self.history.add(seen)
        before = canvas.window.take(self.still)
        still = torch.where(seen.seen, (before + 1) * calm, before)
        canvas.window.put(self.still, still)
        ripe = allowed & (p > self.tau) & (still >= self.n)
        share = top(p, allowed, quota(canvas))
        return torch.where(torch.where(ripe.any(-1, keepdim=True), ripe, share), token, canvas.seen)
