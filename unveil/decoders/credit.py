"""Let tokens that were the favourite before gather credit, then commit by threshold (credit decoding)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, above


@dataclass
class Credit(Decoder):
    """Commits by `tau` under logits + alpha ln(1 + C) (arXiv 2510.06133).

    At each step a position's credits C fall to beta of themselves, and its likeliest token v gains p(v)^gamma. They
    are kept for the open positions of the block alone, and forgotten when it ends. `adaptive` needs no parameters:
    gamma is 1, and alpha and beta are the share of the row's part of the block that is written.
    """

    vectors = 1
    copies = 1

    tau: float = 0.9
    alpha: float = 0.7
    beta: float = 0.8
    gamma: float = 0.2
    adaptive: bool = False  # alpha and beta from the progress, in place of the three numbers

    def __post_init__(self):
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError(f"alpha is {self.alpha}; expected 0 (credit counts for nothing) or more")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; expected 0 (forget at once) to 1 (never forget)")
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}; expected 0 (every favourite gains the same) or more")

    def enter(self, canvas: Canvas) -> None:
        self.kept: Tensor | None = None  # (B * width of the block, V)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        fused = self.fused(canvas, seen)
        token, p = fused.choose(self.temperature, self.top_p)
        return torch.where(above(p, canvas.open & seen.seen, self.tau), token, canvas.seen)

    def fused(self, canvas: Canvas, seen: Prediction) -> Prediction:
        """The prediction with the credits, after this step's were given."""
        kept = self.kept
        if kept is None:
            size = len(canvas.tokens) * canvas.block.width, seen.logits.shape[1]
            kept = self.kept = torch.zeros(size, device=seen.logits.device)
        row, place = seen.places
        index = row * canvas.block.width + place - canvas.starts.to(row.device)[row]
        weight, decay = self.shares(canvas)
        weight, decay = weight[row, None], decay[row, None]
        gain = seen.confidence.view(-1)[seen.read, None] ** (1.0 if self.adaptive else self.gamma)
        favourite = seen.best.view(-1)[seen.read, None]
        logits = torch.empty_like(seen.logits, dtype=torch.float32)
        for start, plain in seen.chunks():
            here = slice(start, start + len(plain))
            credit = (kept[index[here]] * decay[here]).scatter_add_(1, favourite[here], gain[here])
            kept[index[here]] = credit
            logits[here] = plain + weight[here] * credit.log1p_()
        return Prediction(logits, seen.read, canvas)

    def shares(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """(B,) alpha and beta of each row."""
        if self.adaptive:
            done = 1 - canvas.open.sum(-1) / canvas.free.sum(-1).clamp(min=1)
            return done, done
        like = torch.ones(len(canvas.tokens), device=canvas.tokens.device)
        return self.alpha * like, self.beta * like
