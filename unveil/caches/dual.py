"""Fast-dLLM: within a block, reuse the keys and values of everything outside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..canvas import Canvas
from ..context import Context, Store, Window
from . import Cache


@dataclass
class Dual(Cache):
    """An approximation for full attention (arXiv 2505.22618, section 3.2); the refreshing pass decodes too."""

    refresh: int = 0  # recompute everything each so many steps; 0: only when a block begins
    store: Store = field(init=False)

    def __post_init__(self):
        if self.refresh < 0:
            raise ValueError(f"refresh is {self.refresh}; expected 0 (once a block) or a number of steps")

    def begin(self, canvas: Canvas) -> None:
        self.approximates(canvas)
        self.store = Store(canvas.tokens.shape[1])

    def enter(self, canvas: Canvas) -> None:
        self.store.clear()

    def release(self, rows: Tensor) -> None:
        self.store.drop(rows)

    def plan(self, canvas: Canvas) -> Context:
        stale = canvas.step % self.refresh == 0 if self.refresh else canvas.step == 0
        window = Window(0, canvas.tokens.shape[1]) if stale else self.window(canvas)
        return Context(window, canvas.rule, store=self.store)

    def window(self, canvas: Canvas) -> Window:
        """What a step recomputes between two refreshes."""
        return canvas.block
