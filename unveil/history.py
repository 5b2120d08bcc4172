"""What earlier steps said of each position, for decoders that ask whether a prediction has settled.

Shapes: B rows, R positions from a row's first blank on, N positions read, V vocabulary. Memory is depth * B * R * V
float32 numbers: it grows with what is written, never with the prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .canvas import Canvas
from .prediction import Prediction, pieces

FLOOR = -27.6  # log-probabilities below 1e-12 count as that


class History:
    """The latest log-probabilities of every position, each position with its own count of predictions."""

    def __init__(self, canvas: Canvas, depth: int):
        """Room for `depth` predictions of each position."""
        self.depth, self.first = depth, canvas.first.to(canvas.tokens.device)
        reach = int((canvas.lengths - canvas.first).max())
        self.count = torch.zeros(len(canvas.tokens), reach, dtype=torch.long, device=canvas.tokens.device)
        self.kept: Tensor | None = None  # (depth * B * R, V)

    def index(self, seen: Prediction) -> Tensor:
        """(N,) where in (B, R) the positions read are."""
        row, place = seen.places
        return row * self.count.shape[1] + place - self.first[row]

    def counts(self, seen: Prediction) -> Tensor:
        """(B, W) how many predictions of a position came before this one."""
        return seen.spread(self.count.view(-1)[self.index(seen)], 0)

    def add(self, seen: Prediction) -> None:
        """Keep this prediction; the oldest goes when there are more than `depth`."""
        if self.kept is None:
            size = (self.depth * self.count.numel(), seen.logits.shape[1])
            self.kept = torch.zeros(size, device=seen.logits.device)
        index, flat = self.index(seen), self.count.view(-1)
        slot = flat[index] % self.depth * flat.numel() + index
        for here in pieces(seen.logits):
            self.kept[slot[here]] = seen.logp(here).clamp_min(FLOOR)
        flat[index] += 1

    def divergence(self, seen: Prediction, back: int = 1) -> Tensor:
        """(B, W) nats KL(p now || p `back` predictions before); +inf where there were not so many, or not read.

        `seen` has not been added yet; `back` is 1 to `depth`.
        """
        assert 1 <= back <= self.depth
        index, flat = self.index(seen), self.count.view(-1)
        known = flat[index] >= back
        values = torch.full((len(index),), torch.inf, device=seen.logits.device)
        if self.kept is not None:
            slot = (flat[index] - back) % self.depth * flat.numel() + index
            for here in pieces(seen.logits):
                now = seen.logp(here)
                values[here] = (now.exp() * (now.clamp_min(FLOOR) - self.kept[slot[here]])).sum(-1)
            values.masked_fill_(~known, torch.inf)
        return seen.spread(values, torch.inf)
