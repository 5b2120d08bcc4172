"""What earlier steps said of each position, for decoders that ask whether a prediction has settled.

Shapes: B rows, R positions from a row's first blank on, N positions read, V vocabulary. Memory is depth * B * R * V
float32 numbers: it grows with what is written, never with the prompt.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .canvas import Canvas
from .prediction import Prediction, pieces

FLOOR = -27.6  # log-probabilities below 1e-12 count as that


class History:
    """The latest log-probabilities of every position, each position with its own count of predictions."""

    def __init__(self, canvas: Canvas, depth: int, decay: float = 0.0):
        """Room for `depth` predictions of each position, of which the one u before weighs exp(-decay u) in a mean."""
        fading = [math.exp(-decay * back) for back in range(depth)]
        self.weights = [weight / sum(fading) for weight in fading]  # of the latest first
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

    def divergence(self, seen: Prediction) -> Tensor:
        """(B, W) nats, the mean over u of KL(p now || p u predictions before); +inf with fewer than `depth`, or unread.

        `seen` has not been added yet. The logits are gone through once, however many predictions are kept.
        """
        index, flat = self.index(seen), self.count.view(-1)
        values = torch.full((len(index),), torch.inf, device=seen.logits.device)
        if self.kept is not None:
            for here in pieces(seen.logits):
                place, now, past = index[here], seen.logp(here), 0.0
                for back, weight in enumerate(self.weights, 1):
                    past = past + weight * self.kept[(flat[place] - back) % self.depth * flat.numel() + place]
                values[here] = (now.exp() * (now.clamp_min(FLOOR) - past)).sum(-1)
            values.masked_fill_(flat[index] < self.depth, torch.inf)
        return seen.spread(values, torch.inf)
