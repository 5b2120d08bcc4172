"""Next-token prediction: what the parent was trained with, and the exact likelihood of causal and leader models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import rules
from ..context import Context
from ..denoiser import Denoiser
from ..nn import reading
from . import Batch, Loss


def nats(model: Denoiser, batch: Batch) -> Tensor:
    """(B,) negative log-likelihood of every row's targets, in nats, token by token from the left."""
    asked = batch.targets.flatten().nonzero()[:, 0]
    ctx = Context(rule=reading.apart(batch.documents, rules.causal))
    found = reading.logits(model, batch.tokens, ctx, asked - reading.lag(model))
    return reading.by_row(reading.surprise(found, batch.tokens.flatten()[asked]), asked, batch.tokens.shape)


@dataclass
class Autoregressive:
    """Cross-entropy of each target given what is before it; `model` is a next-token network, bare or shifted."""

    @property
    def bound(self) -> bool:
        return True

    def __call__(self, model: Denoiser, batch: Batch) -> Loss:
        targets = batch.targets
        reading.unmasked(model, batch.tokens, targets)
        total = nats(model, batch).sum()
        return Loss(total, targets.sum(), {"ar": total.detach()})
