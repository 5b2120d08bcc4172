"""Texts that a model writes, and what a scorer and their own tokens say of them.

Shapes: N texts, P tokens of a prompt, L positions of a text with its prompt.
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from ..canvas import Canvas
from ..denoiser import Denoiser
from ..objectives import Batch
from ..sample import denoise
from .likelihood import score
from .problems import Setting

ROWS = 32  # texts decoded or scored together


def per_block(model: Denoiser, first: int, length: int, steps: int, block: int | None = None) -> int:
    """Predictions a block when `steps` model calls are shared among all; 0 when they do not suffice for one each.

    `first` is where the writing of `length` tokens begins, `block` the block length; None: as the model was trained.
    """
    look = model.attention
    size = block or look.block
    if not size:
        return min(steps, length)
    blocks = math.ceil((length + (first % size if look.kind == "block" else 0)) / size)
    return steps // blocks - int(look.leads)  # a leader takes one pass


def write(
    model: Denoiser, prompts: Tensor, length: int, setting: Setting, *, seed: int = 0, rows: int = ROWS
) -> tuple[Tensor, int]:
    """(N, P) prompts to (N, P + length) tokens, and the model calls of one batch, the largest number.

    Row i is keyed by seed + i, so what it becomes does not depend on `rows`. An autoregressive parent comes as
    `sample.writer` has it.
    """
    found, forwards = [], 0
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        seeds = torch.arange(start, start + len(some)) + seed
        canvas = Canvas.answering(some, length, model.mask_id, seeds)
        deque(denoise(model, canvas, setting.decoder, **setting.options), maxlen=0)
        found.append(canvas.tokens[:, : prompts.shape[1] + length])
        forwards = max(forwards, canvas.forwards)
    return torch.cat(found), forwards


def inside(rows: Tensor, eos: int | None, begin: int | None = None) -> Tensor:
    """(N, L) True up to a text's first end-of-text token, or its second beginning. Its first token always counts."""
    over = torch.zeros_like(rows, dtype=torch.bool)
    for mark in (eos, begin):
        if mark is not None:
            over[:, 1:] |= rows[:, 1:] == mark
    return over.cumsum(1) == 0


def appraise(scorer: Denoiser, rows: Tensor, eos: int | None, begin: int | None = None) -> dict[str, float]:
    """Of texts (N, L): nats per token under the scorer, and the entropy of a text's tokens, in nats, averaged.

    Both belong together: nonsense that repeats itself has a low perplexity too. The first token is given, and counts
    in neither. A text ends as `inside` says.
    """
    kept = inside(rows, eos, begin)
    nats = 0.0
    if bool(kept[:, 1:].any()):
        nats = score(scorer, Batch(rows, kept), mode="exact", rows=ROWS).nats
    return {
        "nats": nats,
        "perplexity": math.exp(nats),
        "entropy": sum(entropy(row[here][1:]) for row, here in zip(rows, kept, strict=True)) / len(rows),
        "length": float(kept.sum(1).float().mean()),
    }


def entropy(tokens: Tensor) -> float:
    """Of the distribution of tokens in one text, in nats."""
    p = tokens.unique(return_counts=True)[1].double() / max(len(tokens), 1)
    return float(-(p * p.log()).sum())
