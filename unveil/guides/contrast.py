"""Lean away from what the model would write without the words that carry most (FoCore's self-contrast)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..canvas import Canvas
from ..context import Ask, Asking, Context
from ..guidance import Second, contrast
from . import Ahead, Guide, places


@dataclass
class Contrast(Guide):
    """l = l- + (1 + scale) (l+ - l-) among tokens of p+ >= alpha max p+ (reconstruction of arXiv 2605.01373).

    l- comes of a second pass over a copy in which `canvas.hidden`, set by the decoder, is masked; only what was written
    can be hidden. A row that hides nothing goes by l+ alone, and no second pass is made when no row hides anything.

    Where a pass recomputes a part of the text, what is hidden elsewhere stays as it was when that was computed. With
    block and leader attention only the current block hides anything: what is finished is kept.
    """

    looks = 1

    scale: float = 0.5
    alpha: float = 0.1
    second: Second = field(init=False, repr=False)
    shown: Tensor = field(init=False, repr=False)  # (B, L) what the second look's copy of the text hides

    def __post_init__(self):
        if not self.scale >= 0:
            raise ValueError(f"scale is {self.scale}; expected 0 (no contrast) or more")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; expected a share of the best token's probability, 0 to 1")

    def begin(self, canvas: Canvas) -> None:
        self.second = Second(canvas)
        self.shown = torch.zeros_like(canvas.given)

    def ask(self, canvas: Canvas, context: Context, ahead: Ahead) -> Asking:
        logits = yield from ahead(canvas, context)
        if not self.scale:
            return logits
        wanted = canvas.hidden & ~canvas.given & (canvas.tokens != canvas.mask_id)
        if canvas.look.exact:
            wanted = wanted & within(canvas, canvas.starts, canvas.block.width)
        window = context.over(wanted.shape[1])
        starts = torch.as_tensor(window.starts).expand(len(wanted))
        before, self.shown = self.shown, torch.where(within(canvas, starts, window.width), wanted, self.shown)
        rows = self.shown.any(1) & wanted.any(1) & canvas.open.any(1)
        beside = self.second.beside(canvas, context, rows)
        if not bool(rows.any()):
            return logits
        if beside.stale is not None:  # what a copy hides or shows anew is computed anew
            beside = replace(beside, stale=beside.stale | (self.shown != before))
        weak = yield Ask(canvas.tokens.masked_fill(self.shown & rows[:, None], canvas.mask_id), beside)
        logits[:, canvas.mask_id] = -torch.inf  # the mask itself must not be the plausible token
        return contrast(logits, weak, self.scale, self.alpha, rows[places(canvas, context)[0]])


def within(canvas: Canvas, starts: Tensor, width: int) -> Tensor:
    """(B, L) True in the `width` positions from `starts` (B,) on."""
    here = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
    start = starts.to(here.device)[:, None]
    return (here >= start) & (here < start + width)
