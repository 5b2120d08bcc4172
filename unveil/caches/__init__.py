"""Which positions a step recomputes, and what it reuses. One cache per file; the file name is its name."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..canvas import Canvas
from ..context import Context


class Cache(ABC):
    ahead: bool = False  # does every pass predict beyond the block?
    partly: bool = False  # does a pass answer for positions of which it computed only a part?

    def begin(self, canvas: Canvas) -> None:
        """Called once per canvas; ValueError when the model's attention does not allow this cache."""

    def enter(self, canvas: Canvas) -> None:
        """Called once per block, before its first prediction."""

    @abstractmethod
    def plan(self, canvas: Canvas) -> Context:
        """What the next pass recomputes, by which rule, and what it may reuse."""

    def release(self, rows: Tensor) -> None:
        """Free what is kept of `rows` (B,) bool, where that can be done: nothing will ever be read of them again."""

    def approximates(self, canvas: Canvas) -> None:
        """ValueError where finished blocks can be kept exactly: keeping anything else needs full attention."""
        if canvas.look.exact:
            raise ValueError(
                f"the {type(self).__name__.lower()} cache approximates full attention, and this model has "
                f"{canvas.look.kind} attention, whose finished blocks can be kept exactly: use causal"
            )
