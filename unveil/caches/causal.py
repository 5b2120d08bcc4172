"""Keep finished blocks: exact where they never look ahead (BD3-LM, SDAR, leader models, autoregressive parents)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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

    sub  for block models, an approximation inside the block (Fast-dLLM v2, arXiv 2509.26328: blocks of 32, sub-blocks
         of 8): only the leftmost unfinished part of `sub` positions is recomputed and predicted, and the rest of the
         block is reused. The whole block is recomputed when such a part begins, and in a block's last allowed step,
         which predicts all that is left. 0: the whole block in every step, which is exact
    """

    sub: int = 0
    store: Store = field(init=False)
    here: Tensor = field(init=False)  # (B,) where what is not yet kept for good begins
    known: Tensor | None = field(default=None, init=False)  # (B,) positions whose keys and values were there before
    part: Tensor = field(init=False)  # (B,) the number of the sub-block each row is at

    def __post_init__(self):
        if self.sub < 0:
            raise ValueError(f"sub is {self.sub}; expected 0 (whole blocks) or a number of positions")

    def resume(self, store: Store, known: Tensor) -> None:
        """Begin with keys and values computed before: those of the first `known` (B,) positions are in `store`.

        For whole blocks, sub 0. Block models keep whole trained blocks, and no part of the block with the first blank.
        """
        assert not self.sub
        self.store, self.known = store, known

    def begin(self, canvas: Canvas) -> None:
        if not canvas.look.exact:
            raise ValueError(
                "the causal cache keeps finished blocks, which needs a model whose finished blocks never look ahead "
                "(block or leader attention); this one has full attention: use recompute, dual or prefix"
            )
        if self.sub and canvas.look.kind != "block":
            raise ValueError(
                f"sub is {self.sub}, and sub-blocks are parts of a block under block attention; "
                f"this model has {canvas.look.kind} attention: leave sub at 0"
            )
        if self.known is None:
            self.store = (Patched if self.sub else Store)(canvas.tokens.shape[1])
        self.here = torch.zeros_like(canvas.lengths) if self.known is None else self.known
        self.part = torch.zeros_like(canvas.lengths)

    def plan(self, canvas: Canvas) -> Context:
        first = canvas.step == 0
        window = self.redone(canvas) if first else canvas.block
        lasting = ((canvas.tokens == canvas.mask_id) & ~canvas.given).any(1) if first else None
        context = Context(window, canvas.rule, store=self.store, exact=True, lasting=lasting)
        return self.narrowed(canvas, context, window) if self.sub else context

    def redone(self, canvas: Canvas) -> Window:
        """What the first pass of a block recomputes: whatever is not kept for good, and the block or its leader."""
        # A block that was already full when its turn came took no pass, so it is redone with the one before it.
        before, self.here = self.here, canvas.starts
        stop = canvas.starts + (1 if canvas.leading else canvas.block.width)
        width = int((stop - before).max())
        # Rows of which less is known than of others need a wide window; the others redo a part of what is known.
        return Window.of(before.clamp(max=canvas.tokens.shape[1] - width), width)

    def release(self, rows: Tensor) -> None:
        if not self.sub:
            self.store.drop(rows)

    def narrowed(self, canvas: Canvas, context: Context, window: Window) -> Context:
        """The pass of whole blocks, less what lies outside the sub-blocks at hand."""
        assert isinstance(self.store, Patched)
        blank = canvas.block.take((canvas.tokens == canvas.mask_id) & ~canvas.given)
        at, width = torch.arange(blank.shape[1], device=blank.device), blank.shape[1]
        ends = torch.where(blank, at, width).amin(1), torch.where(blank, at, -1).amax(1)
        leftmost, rightmost = torch.stack(ends).cpu()
        part = torch.where(rightmost < 0, self.part, leftmost // self.sub)  # rows that wait stay where they are
        end = canvas.starts + width
        first = canvas.starts + part * self.sub
        last = (first + self.sub).minimum(end)
        settle = (canvas.starts + rightmost >= last) & (canvas.step == canvas.budget - 1)
        begun = (part != self.part) | settle | (canvas.step == 0)  # (B,) rows whose whole block is recomputed
        self.part = part
        # A row is told the same in company: where others need a whole block, it keeps what it would have reused.
        self.store.first, self.store.stop = torch.where(begun, 0, first), torch.where(begun, self.store.capacity, last)
        if not bool(begun.any()):
            size = min(self.sub, width)
            window = Window.of(first.minimum(end - size), size)
        here, last = window.positions(blank.device), torch.where(settle, end, last)
        inside = (here >= first.to(here.device)[:, None]) & (here < last.to(here.device)[:, None])
        return replace(context, window=window, exact=bool(begun.all()), read=inside.flatten().nonzero()[:, 0])


class Patched(Store):
    """A store of which each row is told where it may be written; elsewhere a pass sees what was there before."""

    first: Tensor  # (B,) where writing begins
    stop: Tensor  # (B,) where it stops

    def merge(self, layer: int, k: Tensor, v: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        at = window.positions(k.device).expand(len(k), -1)
        fresh = (at >= self.first.to(k.device)[:, None]) & (at < self.stop.to(k.device)[:, None])
        return super().merge(layer, k, v, Window(at[:, 0], window.width, at, fresh, window.stop))
