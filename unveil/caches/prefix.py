"""Fast-dLLM's prefix cache: within a block, reuse what stands before it and recompute what follows."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas import Canvas
from ..context import Window
from .dual import Dual


@dataclass
class Prefix(Dual):
    ahead = True

    def window(self, canvas: Canvas) -> Window:
        return Window(canvas.block.starts, int((canvas.lengths - canvas.starts).max()))
