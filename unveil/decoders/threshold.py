"""Commit every token surer than a threshold, and at least one (Fast-dLLM; with sub-blocks, Fast-dLLM v2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..nn.extrapolation import Extrapolation
from ..prediction import RESAMPLE, Prediction
from . import Decoder, above, or_best


@dataclass
class Threshold(Decoder):
    """Commits p >= tau and the best one (arXiv 2505.22618, section 3.3).

    With `sub`, a block is finished in parts of that many positions, counted from where it begins: only the leftmost
    unfinished part may be written (arXiv 2509.26328; there 8 of a block of 32).

    With `extrapolate`, it also commits what is about to reach tau and holds back what oscillates (arXiv 2605.30753).
    With `resample`, the chosen positions draw once more, as in `confidence`.
    """

    tau: float = 0.9
    sub: int = 0  # positions that may be written together, a part of the block; 0: the whole block
    extrapolate: bool = False  # look at where confidences are heading
    resample: bool = False  # draw the tokens of the chosen positions anew

    def __post_init__(self):
        super().__post_init__()
        if self.sub < 0:
            raise ValueError(f"sub is {self.sub}; expected 0 (the whole block) or a number of positions")
        self.trend = Extrapolation(self.tau)

    def enter(self, canvas: Canvas) -> None:
        if self.extrapolate:
            self.trend.enter(canvas)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        if self.sub:
            allowed = allowed & self.turn(canvas)
        if self.extrapolate:
            chosen = or_best(self.trend.settle(canvas, seen, token, p >= self.tau) & allowed, p, allowed)
        else:
            chosen = above(p, allowed, self.tau)
        if self.resample:
            token, _ = seen.choose(self.temperature, self.top_p, RESAMPLE)
        return torch.where(chosen, token, canvas.seen)

    def turn(self, canvas: Canvas) -> Tensor:
        """(B, W) True in the leftmost part of the block that is not finished."""
        here = canvas.window.positions(canvas.tokens.device)
        part = (here - canvas.starts.to(here.device)[:, None]).div(self.sub, rounding_mode="floor")
        return part == part.masked_fill(~canvas.open, canvas.block.width).amin(-1, keepdim=True)
