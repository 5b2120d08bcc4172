"""Keep nothing: every step looks at everything afresh. Exact for every model."""

from __future__ import annotations

from dataclasses import dataclass

from ..canvas import Canvas
from ..context import Context, Window
from . import Cache


@dataclass
class Recompute(Cache):
    ahead = True

    def plan(self, canvas: Canvas) -> Context:
        if canvas.look.kind == "full":
            return Context(Window(0, canvas.tokens.shape[1]), canvas.rule)
        # Nothing beyond the block can be seen, so nothing beyond it need be computed.
        stop = int(canvas.starts.max()) + 1 if canvas.leading else canvas.block.stop
        return Context(Window(0, stop), canvas.rule)
