"""Lean away from what the model would write without the prompt (classifier-free guidance, as LLaDA does it)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..canvas import Canvas
from ..context import Ask, Asking, Context
from ..guidance import Second, contrast
from . import Ahead, Guide


@dataclass
class Unconditional(Guide):
    """l = l_u + (1 + scale) (l - l_u), where l_u comes of a second pass with every given token hidden by the mask.

    Unsupervised classifier-free guidance (arXiv 2410.18514) as in LLaDA's sampler (arXiv 2502.09992). Each step costs
    two passes. `scale` 0 is no guidance, and costs nothing.
    """

    looks = 1

    scale: float = 1.0
    second: Second = field(init=False, repr=False)
    prompted: bool = field(init=False, repr=False)

    def __post_init__(self):
        if not self.scale >= 0:
            raise ValueError(f"scale is {self.scale}; expected 0 (no guidance) or more")

    def begin(self, canvas: Canvas) -> None:
        if canvas.look.leads and self.scale:
            raise ValueError(
                "classifier-free guidance hides the prompt behind masks, and a model with "
                f"{canvas.look.kind} attention has never read a mask in the text before its block: it needs full or "
                "block attention"
            )
        self.second = Second(canvas)
        inside = torch.arange(canvas.given.shape[1]) < canvas.lengths[:, None]
        self.prompted = bool((canvas.given & inside.to(canvas.given.device)).any())

    def ask(self, canvas: Canvas, context: Context, ahead: Ahead) -> Asking:
        logits = yield from ahead(canvas, context)
        if not self.scale or not self.prompted:
            return logits
        every = torch.ones_like(canvas.given[:, 0])
        tokens = canvas.tokens.masked_fill(canvas.given, canvas.mask_id)
        weak = yield Ask(tokens, self.second.beside(canvas, context, every))
        return contrast(logits, weak, self.scale)
