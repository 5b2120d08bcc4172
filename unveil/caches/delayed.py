"""dKV-Cache: reuse the keys and values of written tokens, from one step after they were written."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..canvas import Canvas
from ..context import Context, Window
from .dual import Dual


@dataclass
class Delayed(Dual):
    """An approximation for full attention (arXiv 2505.15781, dKV-Cache-Decode).

    A token's keys and values change most when it turns from blank to token, so they are kept from the first pass that
    saw the token, which is the step after. A step computes every blank, what the step before wrote, and what is read.
    The first two steps of a block compute everything, and so does every `refresh`-th.
    """

    ahead = True

    refresh: int = 8  # recompute everything each so many steps; 0: only when a block begins
    before: Tensor = field(init=False, repr=False)  # (B, L) the tokens that the latest pass saw

    def plan(self, canvas: Canvas) -> Context:
        stale = None
        if canvas.step > 1 and (self.refresh == 0 or canvas.step % self.refresh):
            blank = (canvas.tokens == canvas.mask_id) & ~canvas.given
            stale = blank | (canvas.tokens != self.before)
        self.before = canvas.tokens.clone()
        return Context(Window(0, canvas.tokens.shape[1]), canvas.rule, store=self.store, stale=stale)
