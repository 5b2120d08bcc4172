"""Read a next-token predictor as a same-position denoiser (Dream, DiffuLLaMA, any adapted autoregressive model)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..context import EVERYTHING, Context, Window
from ..denoiser import Denoiser


class Shifted(Denoiser):
    """Logits at i speak of token i, though the network inside spoke of it at i - 1.

    Position 0 has no predecessor and repeats its own logits: it is always given, so nobody may rely on them.
    """

    def __init__(self, model: Denoiser):
        super().__init__()
        assert not model.shifted, "shifting twice would speak of the token before"
        self.model = model
        self.mask_id, self.attention = model.mask_id, model.attention
        self.bos_id, self.eos_id = model.bos_id, model.eos_id
        self.context_length = model.context_length
        self.shifted = True

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        """(B, L) to (B, W, V), or (N, V) under `ctx.read`, as every denoiser."""
        window = ctx.over(tokens.shape[1])
        if window.starts == 0 if isinstance(window.starts, int) else not bool(window.starts.any()):
            return self.from_start(tokens, ctx, window.width)
        if ctx.exact and ctx.read is not None and bool((ctx.read % window.width > 0).all()):
            return self.model(tokens, replace(ctx, read=ctx.read - 1))  # all predecessors lie in the window
        if isinstance(window.starts, int):
            wider, late = window.widened(1), None
        else:  # a row that begins at 0 cannot begin earlier: it is computed one position further instead
            wider, late = Window((window.starts - 1).clamp(min=0), window.width + 1), window.starts > 0
        inner = replace(ctx, window=wider)
        if ctx.positions is not None:
            inner = replace(inner, positions=torch.cat([ctx.positions[..., :1] - 1, ctx.positions], -1))
            assert late is None or bool(late.all()), "positions of their own need a predecessor in every row"
        if ctx.read is not None:
            row, at = ctx.read // window.width, ctx.read % window.width
            if late is not None:
                at = torch.where(late.to(at.device)[row], at, (at - 1).clamp(min=0))
            return self.model(tokens, replace(inner, read=row * wider.width + at))
        logits = self.model(tokens, inner)
        if late is None:
            return logits[:, :-1]
        first = torch.cat([logits[:, :1], logits[:, :-2]], dim=1)
        return torch.where(late.to(logits.device)[:, None, None], logits[:, :-1], first)

    def from_start(self, tokens: Tensor, ctx: Context, width: int) -> Tensor:
        if ctx.read is None:
            logits = self.model(tokens, ctx)
            return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        row, at = ctx.read // width, ctx.read % width
        return self.model(tokens, replace(ctx, read=row * width + (at - 1).clamp(min=0)))
