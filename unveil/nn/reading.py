"""Ask a network about chosen tokens, so that head and loss run on the rows that are read and on no others.

Shapes: B rows, L positions, N tokens asked about, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .. import rules
from ..context import Context, Rule, dense
from ..denoiser import Denoiser
from .strips import Strips

CHUNK = 1 << 20  # logits turned to float32 at a time: 4 MiB, which a cache holds


def lag(model: Denoiser) -> int:
    """How far to the left of a token its next-token logits stand: a wrapper has moved them already, or nobody has."""
    return 0 if model.shifted else 1


def apart(documents: Tensor | None, rule: Rule | None, copies: int = 1) -> Rule | None:
    """`rule` within each document. It stays itself where no row holds two, so that causal never becomes a matrix.

    `documents` (B, L); `copies` is how often the sequence stands in a row of the network's input.
    """
    if documents is None or bool((documents == documents[:, :1]).all()):
        return rule
    return rules.both(rule, rules.documents(torch.cat([documents] * copies, dim=1)))


def unmasked(model: Denoiser, tokens: Tensor, targets: Tensor) -> None:
    """Refuse text that holds the mask itself where it is to be predicted: no model may ever predict it."""
    wrong = (targets & (tokens == model.mask_id)).nonzero()
    if len(wrong):
        row, at = wrong[0].tolist()
        raise ValueError(f"the text holds the mask token {model.mask_id} itself, at position {at} of row {row}")


def logits(model: Denoiser, tokens: Tensor, ctx: Context, read: Tensor) -> Tensor:
    """(N, V) logits at flat indices `read` into (B, L); the mask is never predicted."""
    if ctx.attend is dense and tokens.device.type == "cpu" and torch.is_grad_enabled():
        ctx = replace(ctx, attend=Strips())
    found = model(tokens, replace(ctx, read=read))
    if model.mask_id >= 0:
        found[:, model.mask_id] = -torch.inf  # in place: a copy would double the largest tensor of a step
    return found


class Surprise(torch.autograd.Function):
    """-log softmax(logits)[answer] without a copy of the logits in float32: what the backward pass needs is computed
    again from them, a piece at a time."""

    @staticmethod
    def forward(ctx, logits: Tensor, answers: Tensor) -> Tensor:
        sums, right = [], []
        for some, wanted in pieces(logits, answers):
            wide = some.float()
            sums.append(wide.logsumexp(1))
            right.append(wide.gather(1, wanted[:, None])[:, 0])
        total = torch.cat(sums)
        ctx.save_for_backward(logits, answers, total)
        return total - torch.cat(right)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        logits, answers, total = ctx.saved_tensors
        found = torch.empty_like(logits)
        parts = zip(pieces(logits, answers), pieces(found, total), pieces(found, grad), strict=True)
        for (some, wanted), (out, lse), (_, pull) in parts:
            p = some.float().sub_(lse[:, None]).exp_()
            p.scatter_add_(1, wanted[:, None], p.new_full((len(p), 1), -1.0))
            out.copy_(p.mul_(pull[:, None]))
        return found, None


def pieces(logits: Tensor, beside: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(N, V) and (N, ...) a few rows at a time."""
    rows = max(CHUNK // logits.shape[1], 1)
    return zip(logits.split(rows), beside.split(rows), strict=True)


def surprise(logits: Tensor, answers: Tensor) -> Tensor:
    """(N,) float32 negative log-probabilities, in nats, of `answers` (N,) under `logits` (N, V)."""
    return Surprise.apply(logits, answers)


def by_row(values: Tensor, flat: Tensor, shape: torch.Size) -> Tensor:
    """(B,) sums of `values` (N,), which belong to the flat indices `flat` into `shape` (B, L)."""
    return values.new_zeros(shape[0]).index_add(0, flat // shape[1], values)
