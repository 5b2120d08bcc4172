"""Commit by threshold and overwrite what the model has come to see otherwise (LLaDA2.1, joint threshold)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, above


@dataclass
class Edit(Decoder):
    """Each step commits blanks with p >= tau, or the best one, and replaces written tokens by a likelier one, p > edit.

    A row whose part of the block is full goes on until a step changes nothing, at most `post` steps: that cap is also
    what ends a cycle. `penalty` is taken off the logit of the token on the left, against repetition. Given tokens never
    change. As LLaDA2.1's samplers have it; meant for models trained to edit, as others mostly copy what they see.
    """

    revises: ClassVar[bool] = True
    takes_back: ClassVar[bool] = True
    lingers: ClassVar[bool] = True

    tau: float = 0.5
    edit: float = 0.0  # 1: never
    post: int = 16  # steps a full block may take
    penalty: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.edit < 0:
            raise ValueError(f"edit is {self.edit}; expected 0 (whenever another token is likeliest) to 1 (never)")
        if self.post < 0:
            raise ValueError(f"post is {self.post}; expected 0 (a full block is done) or a number of steps")
        if self.penalty < 0:
            raise ValueError(f"penalty is {self.penalty}; expected 0 (none) or what to take off a logit")

    def enter(self, canvas: Canvas) -> None:
        blank = (canvas.tokens == canvas.mask_id) & ~canvas.given
        self.settled = ~canvas.block.take(blank).any(-1)  # (B,) rows that are done with this block
        self.after = torch.zeros_like(canvas.taken)  # (B,) steps a row took since its part was full
        self.filling = canvas.budget
        canvas.budget += self.post

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        if self.penalty:
            self.penalise(canvas, seen)
        token, p = seen.choose(self.temperature, self.top_p)
        blank, full = canvas.open & seen.seen, ~canvas.open.any(-1)
        written = torch.where(above(p, blank, self.tau), token, canvas.seen)
        if canvas.step + 1 == self.filling:  # out of steps for blanks; what remains is for edits
            written = torch.where(blank & (written == canvas.mask_id), seen.best, written)
        old = canvas.free & ~canvas.open & seen.seen & ~self.settled[:, None]
        other = old & (seen.best != canvas.seen) & (seen.confidence > self.edit)
        written = torch.where(other, seen.best, written)
        self.after = self.after + full
        done = full & ~other.any(-1) if self.post and self.edit < 1 else torch.ones_like(full)
        filled = ~(canvas.free & (written == canvas.mask_id)).any(-1)
        self.settled = self.settled | (filled & (done | (self.after >= self.post)))
        return written

    def penalise(self, canvas: Canvas, seen: Prediction) -> None:
        """Take `penalty` off the logit of each position's left neighbour, before any statistic is taken."""
        row, place = seen.places
        left = canvas.tokens[row, (place - 1).clamp(min=0)]
        cost = (self.penalty * (place > 0)).to(seen.logits.dtype)
        seen.logits.scatter_add_(1, left[:, None], -cost[:, None])

    def done(self, canvas: Canvas) -> bool:
        return canvas.finished and bool(self.settled.all())

    def rests(self, canvas: Canvas) -> Tensor:
        return super().rests(canvas) & self.settled
