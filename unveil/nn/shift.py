"""Read a next-token predictor as a same-position denoiser (Dream, DiffuLLaMA, any adapted autoregressive model)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..context import EVERYTHING, Ask, Context, Window, causal
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
        inner, late = self.moved(ctx, tokens)
        logits = self.model(tokens, inner)
        if ctx.read is not None:
            return logits
        if inner.window is ctx.window:
            return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        if late is None:
            return logits[:, :-1]
        first = torch.cat([logits[:, :1], logits[:, :-2]], dim=1)
        return torch.where(late.to(logits.device)[:, None, None], logits[:, :-1], first)

    def inside(self, ask: Ask) -> tuple[Denoiser, Ask]:
        assert ask.context.read is not None
        return self.model.inside(Ask(ask.tokens, self.moved(ask.context, ask.tokens)[0]))

    def moved(self, ctx: Context, tokens: Tensor) -> tuple[Context, Tensor | None]:
        """What the network within is asked, for (B, L) tokens.

        In a window that was widened to the left: (B,) rows in which that was possible, None for all.
        """
        window, read = ctx.over(tokens.shape[1]), ctx.read
        if window.starts == 0 if isinstance(window.starts, int) else not bool(window.starts.any()):
            if read is not None:
                at = (read % window.width - 1).clamp(min=0)
                ctx = replace(ctx, read=read // window.width * window.width + at)
            return ctx, None
        if ctx.exact and read is not None and bool((read % window.width > 0).all()):
            # All predecessors lie in the window.
            return shortened(ctx, window, read, len(tokens)) or replace(ctx, read=read - 1), None
        if isinstance(window.starts, int):
            wider, late = window.widened(1), None
        else:  # a row that begins at 0 cannot begin earlier: it is computed one position further instead
            wider, late = Window((window.starts - 1).clamp(min=0), window.width + 1), window.starts > 0
        inner = replace(ctx, window=wider)
        if ctx.positions is not None:
            inner = replace(inner, positions=torch.cat([ctx.positions[..., :1] - 1, ctx.positions], -1))
            assert late is None or bool(late.all()), "positions of their own need a predecessor in every row"
        if read is not None:
            row, at = read // window.width, read % window.width
            if late is not None:
                at = torch.where(late.to(at.device)[row], at, (at - 1).clamp(min=0))
            inner = replace(inner, read=row * wider.width + at)
        return inner, late


def shortened(ctx: Context, window: Window, read: Tensor, rows: int) -> Context | None:
    """The pass without the window's last column, where that is all that is predicted, once in every row; else None.

    Under a causal rule nothing else looks at that column, and what it would put into the store is put there again by
    the pass that reads the token written now. One position fewer: half of an autoregressive pass.
    """
    last = window.width - 1
    plain = ctx.rule is causal and window.at is None and ctx.positions is None and ctx.stale is None
    row = torch.arange(rows, device=read.device)
    if not plain or not torch.equal(read, row * window.width + last):
        return None
    return replace(ctx, window=Window(window.starts, last), read=row * last + last - 1)
