"""The one thing every sampler, objective and guide asks of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from .attention import FULL, Attention
from .context import EVERYTHING, Ask, Context


class Denoiser(nn.Module, ABC):
    """Noisy tokens to logits for the clean token at each position under `ctx.window`."""

    mask_id: int  # -1: the checkpoint has no mask token (an autoregressive parent)
    attention: Attention = FULL  # how the checkpoint was trained to look
    shifted: bool = False  # do the logits at i already speak of token i because a wrapper moved them?
    bos_id: int | None = None  # put before an empty prompt
    eos_id: int | None = None  # ends a text
    context_length: int | None = None  # positions it can hold; None: no limit

    @abstractmethod
    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        """(B, L) to (B, W, V), or to (N, V) where `ctx.read` names N rows of the window."""

    def inside(self, ask: Ask) -> tuple[Denoiser, Ask]:
        """The network that a pass is computed by in the end, and what this one asks of it; for passes with `read`."""
        return self, ask
