"""A model and a batch to a loss. One objective per file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..denoiser import Denoiser


@dataclass
class Batch:
    """Shapes: B rows, L positions."""

    tokens: Tensor  # (B, L) int64
    answer: Tensor  # (B, L) True where the model is to learn; False for prompts and padding
    documents: Tensor | None = None  # (B, L) int64: the number of each position's document; None: one document a row
    ids: Tensor | None = None  # (B,) int64 global sample numbers: they key the corruption and name the culprit of a NaN
    seed: int = 0  # keys the corruption together with `ids`
    step: int = 0  # the optimiser step: keys what all rows of a step share, however it is split into micro-batches
    progress: float = 1.0  # share of training done, for schedules

    @property
    def targets(self) -> Tensor:
        """(B, L) True at what may be predicted and masked: the answer, less the first token of every document.

        Every objective and likelihood scores exactly these, so that their numbers compare.
        """
        here = self.answer.clone()
        here[:, 0] = False
        if self.documents is not None:
            here[:, 1:] &= self.documents[:, 1:] == self.documents[:, :-1]
        return here

    @property
    def keys(self) -> Tensor:
        """(B,) what keys each row's corruption."""
        return torch.arange(len(self.tokens), device=self.tokens.device) if self.ids is None else self.ids


@dataclass
class Loss:
    """A sum and what to divide it by: micro-batches add both, so no split of the batch changes the result."""

    total: Tensor  # () differentiable sum over the batch, in nats
    count: Tensor  # () number of targets, never the number that happened to be masked
    parts: dict[str, Tensor] = field(default_factory=dict)  # detached sums of the terms, for the log

    @property
    def mean(self) -> Tensor:
        return self.total / self.count


class Objective(Protocol):
    """`bound` says whether `mean` is an upper bound on the negative log-likelihood per token (or that itself)."""

    @property
    def bound(self) -> bool: ...

    def __call__(self, model: Denoiser, batch: Batch) -> Loss: ...
