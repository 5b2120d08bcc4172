"""Read an autoregressive parent as the sampling loop reads denoisers, in blocks of one."""

from __future__ import annotations

from torch import Tensor

from ..attention import Attention
from ..context import EVERYTHING, Ask, Context
from ..denoiser import Denoiser
from .shift import Shifted
from .transformer import Transformer


class Following(Shifted):
    """A parent without a mask token has blanks all the same: a number beyond its vocabulary, which it cannot say.

    In blocks of one nothing looks at a blank, so what stands there for the network means nothing.
    """

    def __init__(self, model: Transformer):
        super().__init__(model)
        self.attention = Attention("causal", 1)
        if self.mask_id < 0:
            self.mask_id = model.s.vocab

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        """(B, L) to (B, W, V), or (N, V) under `ctx.read`, as every denoiser; blanks may be among the tokens."""
        return super().forward(self.known(tokens), ctx)

    def inside(self, ask: Ask) -> tuple[Denoiser, Ask]:
        return super().inside(Ask(self.known(ask.tokens), ask.context))

    def known(self, tokens: Tensor) -> Tensor:
        """With some token of the vocabulary where blanks are."""
        return tokens.masked_fill(tokens == self.mask_id, 0)
