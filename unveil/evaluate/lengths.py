"""How well blanks of several lengths fit what stands around them."""

from __future__ import annotations

import torch

from ..canvas import Canvas
from ..denoiser import Denoiser
from ..objectives import Batch
from .likelihood import score

DRAWS = 8  # noise draws that each choice of lengths is judged by


def fit(network: Denoiser, canvas: Canvas, seed: int) -> list[float]:
    """Of each filled row the bound, in nats, on the surprise at everything from its first blank on: the fill, and what
    follows it. The least is the choice of lengths that fits best; all rows see the same noise."""
    width = int(canvas.lengths.max())
    at = torch.arange(width)
    beyond = at >= canvas.lengths[:, None]
    answer = (at >= canvas.first[:, None]) & ~beyond
    tokens = canvas.tokens[:, :width]
    ids = torch.zeros(len(tokens), dtype=torch.long)
    parts = [each.to(tokens.device) for each in (answer, beyond.long(), ids)]
    batch = Batch(tokens, parts[0], documents=parts[1], ids=parts[2])
    whole = 0 if canvas.look.kind == "full" else None
    return score(network, batch, mode="bound", block=whole, draws=DRAWS, seed=seed).totals.tolist()
