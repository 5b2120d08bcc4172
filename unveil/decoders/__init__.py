"""What a step writes on the canvas. One decoder per file; the file name is its name on the command line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..canvas import Canvas
from ..context import Ask, Asking, Context
from ..denoiser import Denoiser
from ..prediction import Prediction


@dataclass
class Decoder(ABC):
    ahead: ClassVar[bool] = False  # does it read predictions beyond the block?
    reaches: ClassVar[bool] = False  # does it read them too, but only where every pass makes them?
    revises: ClassVar[bool] = False  # does it read predictions for what it has already written?
    takes_back: ClassVar[bool] = False  # does it ever replace or take back what it has written?
    lingers: ClassVar[bool] = False  # does it go on reading rows whose part of the block is full?
    afresh: ClassVar[bool] = False  # must every pass compute everything, so that only recompute will do?
    settles: ClassVar[bool] = False  # does it commit what stands still, so that each prediction must be made anew?
    guide: ClassVar[str] = ""  # the spec of a guide it cannot do without
    vectors: ClassVar[int] = 0  # float32 vectors over the vocabulary that it keeps for each position to write
    copies: ClassVar[int] = 0  # tensors of the size of a pass's logits that a step makes of them
    asides: ClassVar[int] = 0  # float32 vectors over the vocabulary that a step makes for each row

    temperature: float = field(default=0.0, kw_only=True)  # 0: the likeliest token
    top_p: float = field(default=1.0, kw_only=True)  # share of probability that draws are made from

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0 and at most 1")

    def meet(self, model: Denoiser) -> None:
        """Called before anything else; ValueError when the decoder was made for another model."""

    def begin(self, canvas: Canvas) -> None:
        """Called once per canvas. What is remembered beyond a block begins here and nowhere else."""

    def enter(self, canvas: Canvas) -> None:
        """Called once per block, before its first prediction."""

    def reads(self, canvas: Canvas, ahead: bool) -> Tensor:
        """(N,) flat indices into (B, W) of the positions this step looks at; `ahead`: beyond the block as well."""
        return canvas.reads(ahead, self.revises, self.lingers)

    def ask(self, canvas: Canvas, context: Context) -> Asking:
        """The passes of one step: one, over the canvas as it is. Decoders that verify what they wrote make others."""
        return (yield Ask(canvas.tokens, context))

    @abstractmethod
    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        """The new (B, W) tokens of `canvas.window`. Writing `mask_id` takes a token back."""

    def done(self, canvas: Canvas) -> bool:
        return canvas.finished

    def rests(self, canvas: Canvas) -> Tensor:
        """(B,) rows whose part of the block will not change any more."""
        inside = canvas.block.take(canvas.tokens) == canvas.mask_id
        return ~(inside & ~canvas.block.take(canvas.given)).any(1)


def quota(canvas: Canvas) -> Tensor:
    """(B,) LLaDA's equal share of the block's blanks for this step: ceil(left / steps left)."""
    left = canvas.block.take((canvas.tokens == canvas.mask_id) & ~canvas.given).sum(-1)
    return -(-left // max(canvas.budget - canvas.step, 1))


def top(score: Tensor, allowed: Tensor, count: Tensor | int) -> Tensor:
    """True at the `count` best allowed positions of each row; of equals the leftmost."""
    order = score.masked_fill(~allowed, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, places)
    return (rank < torch.as_tensor(count, device=score.device).view(-1, 1)) & allowed


def or_best(chosen: Tensor, score: Tensor, allowed: Tensor) -> Tensor:
    """(B, W) what is chosen; in a row where nothing is, the best allowed position."""
    return chosen | (top(score, allowed, 1) & ~chosen.any(-1, keepdim=True))


def above(score: Tensor, allowed: Tensor, level: Tensor | float, least: int = 1) -> Tensor:
    """True where an allowed position reaches `level`, and at the `least` best, so that every step advances."""
    return (allowed & (score >= level)) | top(score, allowed, least)
