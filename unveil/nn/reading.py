"""Ask a network about chosen tokens, so that head and loss run on the rows that are read and on no others.

Shapes: B rows, L positions, N tokens asked about, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rules
from ..context import Context, Rule
from ..denoiser import Denoiser

CHUNK = 1 << 25  # logits turned to float32 at a time: 128 MiB


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
    found = model(tokens, replace(ctx, read=read))
    if model.mask_id >= 0:
        found[:, model.mask_id] = -torch.inf  # in place: a copy would double the largest tensor of a step
    return found


def surprise(logits: Tensor, answers: Tensor) -> Tensor:
    """(N,) float32 negative log-probabilities, in nats, of `answers` (N,) under `logits` (N, V)."""
    rows = max(CHUNK // logits.shape[1], 1)
    pairs = zip(logits.split(rows), answers.split(rows), strict=True)
    return torch.cat([F.cross_entropy(some.float(), wanted, reduction="none") for some, wanted in pairs])


def by_row(values: Tensor, flat: Tensor, shape: torch.Size) -> Tensor:
    """(B,) sums of `values` (N,), which belong to the flat indices `flat` into `shape` (B, L)."""
    return values.new_zeros(shape[0]).index_add(0, flat // shape[1], values)
