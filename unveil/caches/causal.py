"""Keep finished blocks: exact where they never look ahead (BD3-LM, SDAR, leader models, autoregressive parents)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..canvas import Canvas
from ..context import Context, Store, Window
from . import Cache


@dataclass
class Causal(Cache):
    """The first pass of a block also redoes the block before, now that it is finished: no pass serves that alone.

    Block models fuse it with the first prediction of the whole block. Leader models read what is committed token by
    token, and that same pass predicts the leader, so a block of one is autoregressive decoding with a KV cache.
    """

    store: Store = field(init=False)
    before: Tensor = field(init=False)  # (B,) where the block that is not yet kept begins

    def begin(self, canvas: Canvas) -> None:
        if not canvas.look.exact:
            raise ValueError(
                "the causal cache keeps finished blocks, which needs a model whose finished blocks never look ahead "
                "(block or leader attention); this one has full attention: use recompute, dual or prefix"
            )
        self.store = Store(canvas.tokens.shape[1])
        self.here = torch.zeros_like(canvas.lengths)

    def enter(self, canvas: Canvas) -> None:
        self.before, self.here = self.here, canvas.starts

    def plan(self, canvas: Canvas) -> Context:
        if canvas.step:
            return Context(canvas.block, canvas.rule, store=self.store, exact=True)
        stop = canvas.starts + (1 if canvas.leading else canvas.block.width)
        window = Window.of(self.before, int((stop - self.before).max()))
        return Context(window, canvas.rule, store=self.store, exact=True)
