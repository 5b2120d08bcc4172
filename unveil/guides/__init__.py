"""What changes a prediction before a decoder reads it. One guide per file; the file name is its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from ..canvas import Canvas
from ..context import Asking, Context

Ahead = Callable[[Canvas, Context], Asking]
"""What a guide stands around: a decoder's own passes, or those of another guide."""


@dataclass
class Guide(ABC):
    looks: ClassVar[int] = 0  # passes beside the plain one, each with keys and values of its own

    inner: Guide | None = field(default=None, kw_only=True)  # another guide, applied before this one

    def begin(self, canvas: Canvas) -> None:
        """Called once per canvas; ValueError when the guide cannot serve it."""

    @abstractmethod
    def ask(self, canvas: Canvas, context: Context, ahead: Ahead) -> Asking:
        """The passes of one step and the logits (N, V) that come of them: those of `ahead`, changed."""

    def settle(self, canvas: Canvas) -> None:
        """Called after every step; it may write what follows from what was written."""

    def around(self, ahead: Ahead) -> Ahead:
        """This guide and those within it, around a decoder's passes."""
        before = self.inner.around(ahead) if self.inner else ahead
        return lambda canvas, context: self.ask(canvas, context, before)

    def beyond(self, first: Guide) -> Guide:
        """The same guides with `first` applied before all of them."""
        return replace(self, inner=self.inner.beyond(first) if self.inner else first)

    def chain(self) -> list[Guide]:
        """The guides within and this one, in the order they are applied."""
        return [*(self.inner.chain() if self.inner else []), self]


def places(canvas: Canvas, context: Context) -> tuple[Tensor, Tensor]:
    """(N,) row and (N,) position in the row of what a pass reads."""
    read, width = context.read, canvas.window.width
    assert read is not None
    here = canvas.window.positions(read.device).expand(len(canvas.tokens), -1)
    return read // width, here.reshape(-1)[read]
