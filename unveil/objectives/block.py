"""Block diffusion (BD3-LM): noisy blocks that see the clean blocks before them, all in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rules
from ..context import Context
from ..denoiser import Denoiser
from ..nn import reading
from ..processes import Draw, Estimator
from . import Batch, Loss
from .masked import diffusible, hide


def two_streams(
    batch: Batch, drawn: Draw, mask_id: int, size: int, *, token_causal: bool = False
) -> tuple[Tensor, Context]:
    """(B, 2L) noisy copy, clean copy, and the pass in which blocks of `size` see what they may (`teacher_forcing`)."""
    length = batch.tokens.shape[1]
    here = torch.arange(length, device=batch.tokens.device)
    rule = reading.apart(batch.documents, rules.teacher_forcing(length, size, token_causal=token_causal), copies=2)
    ctx = Context(rule=rule, positions=torch.cat([here, here]))
    return torch.cat([batch.tokens.masked_fill(drawn.hit, mask_id), batch.tokens], dim=1), ctx


def in_streams(flat: Tensor, length: int, stream: int) -> Tensor:
    """Flat indices into (B, L) to flat indices into (B, 2L): `stream` 0 is the noisy copy, 1 the clean one."""
    return flat + (flat // length + stream) * length


def nats(model: Denoiser, batch: Batch, drawn: Draw, size: int) -> Tensor:
    """(B,) weighted surprise at the hidden tokens of every block given clean blocks before it."""
    tokens, ctx = two_streams(batch, drawn, model.mask_id, size)
    flat = drawn.hit.flatten().nonzero()[:, 0]
    found = reading.logits(model, tokens, ctx, in_streams(flat, batch.tokens.shape[1], 0))
    found = reading.surprise(found, batch.tokens.flatten()[flat])
    return reading.by_row(found * drawn.weight.flatten()[flat], flat, batch.tokens.shape)


def same_position(model: Denoiser) -> None:
    """Refuse a shifted model: it would read a block's first token from the noisy block before it."""
    if model.shifted:
        raise ValueError(
            "block diffusion needs logits at i that speak of token i, but this model is shifted: "
            "its first token of a block would be read from another noisy block; use leader, or load with raw=True"
        )


@dataclass
class Block:
    """One noise level per block (2503.09573); the model is not shifted.

    size       tokens in a block, counted from the beginning of the row
    estimator  count or bernoulli, as in `masked`
    eps        the smallest t of `bernoulli`
    """

    size: int = 16
    estimator: Estimator = "count"
    eps: float = 1e-3

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"a block has at least 1 token, got size={self.size}")

    @property
    def bound(self) -> bool:
        return True

    def __call__(self, model: Denoiser, batch: Batch) -> Loss:
        diffusible(model, batch)
        same_position(model)
        targets = batch.targets
        drawn = hide(batch, self.size, targets, self.estimator, self.eps)
        total = nats(model, batch, drawn, self.size).sum()
        return Loss(total, targets.sum(), {"diffusion": total.detach()})
