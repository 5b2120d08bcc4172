"""Commit tokens beyond the block whose distribution has stopped moving (AHD)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..canvas import Canvas
from ..history import FLOOR, History
from ..prediction import Prediction, pieces
from . import Decoder, above

FORMS = ("window", "ema")


@dataclass
class Ahd(Decoder):
    """Anchor-based history-stable decoding (arXiv 2604.08964); Reconstruction: `decay`, `tau` and the cheap form.

    In the current block every token of probability `tau` or more is committed, and the best one. Beyond it, so are the
    likeliest tokens of blanks with D < epsilon, where

        D = sum over u = 1 .. history - 1 of w(u) KL(p now || p u predictions ago),  w(u) ~ exp(-decay u),  sum w = 1

    and a blank needs `history` predictions, this one included. `form="ema"` keeps one vector a position in place of a
    window of them: the same sum over every earlier prediction, the oldest ones never dropped.

    Memory of the window is (history - 1) * rows * positions to write * vocabulary float32 numbers, of the other form
    rows * positions to write * vocabulary. Needs full attention and a cache that predicts beyond the block and makes
    each prediction anew: under `features` one may stand still for no other reason than that it was not made again.
    """

    ahead = True
    settles = True

    tau: float = 0.9
    history: int = 6  # predictions compared, this one included
    epsilon: float = 0.01  # nats; 0: nothing is committed beyond the block
    decay: float = 0.5
    guard_end: bool = False  # the end of the text only as a run to the row's end, once the block has a sure one
    least: float = 0.0  # the probability that a token beyond the block must have
    form: str = "window"
    past: History = field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.history < 2:
            raise ValueError(f"history is {self.history}; expected at least 2 predictions to compare")
        for name in ("tau", "epsilon", "decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.least <= 1:
            raise ValueError(f"least is {self.least}; expected a probability")
        if self.form not in FORMS:
            raise ValueError(f"no form of history called {self.form!r}; there are: {', '.join(FORMS)}")

    @property
    def vectors(self) -> int:
        return 1 if self.form == "ema" else self.history - 1

    def begin(self, canvas: Canvas) -> None:
        if self.guard_end and canvas.end is None:
            raise ValueError("guard_end guards the end of the text, and this model has no token for it: leave it off")
        ema = self.form == "ema"
        self.past = Fading(canvas, self.decay) if ema else History(canvas, self.history - 1, self.decay)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        chosen = above(p, canvas.open & seen.seen, self.tau)
        if bool((canvas.starts + canvas.block.width < canvas.lengths).any()):  # there is something beyond the block
            later = canvas.blank & seen.seen & ~canvas.free
            stable = later & (self.drift(seen) < self.epsilon) & (p >= self.least)
            chosen |= self.guarded(canvas, token, p, stable) if self.guard_end else stable
            self.past.add(seen)
        return torch.where(chosen, token, canvas.seen)

    def drift(self, seen: Prediction) -> Tensor:
        """(B, W) nats, D above; +inf where a position has had too few predictions."""
        early = self.past.counts(seen) < self.history - 1
        return self.past.divergence(seen).masked_fill(early, torch.inf).clamp_min(0)  # rounding may leave it below 0

    def guarded(self, canvas: Canvas, token: Tensor, p: Tensor, stable: Tensor) -> Tensor:
        """(B, W) `stable` less the ends of text that more text may come after."""
        end = (token == canvas.end) & stable
        written = canvas.seen == canvas.end
        beyond = canvas.window.positions(token.device) >= canvas.lengths.to(token.device)[:, None]
        run = (end | written | beyond).flip(1).cumprod(1).flip(1).bool()
        sure = canvas.open & (token == canvas.end) & (p >= self.tau)
        here = (canvas.free & (sure | written)).any(1, keepdim=True)
        return stable & (~end | (run & here))


class Fading(History):
    """The exponentially weighted sum of all earlier log-probabilities: one vector a position."""

    def __init__(self, canvas: Canvas, decay: float):
        super().__init__(canvas, 1)
        self.keeps = math.exp(-decay)

    def add(self, seen: Prediction) -> None:
        kept = self.kept
        if kept is None:
            self.kept = kept = torch.zeros(self.count.numel(), seen.logits.shape[1], device=seen.logits.device)
        index, flat = self.index(seen), self.count.view(-1)
        for some in pieces(seen.logits):
            here = index[some]
            sums = kept[here].masked_fill((flat[here] == 0)[:, None], 0.0)
            kept[here] = self.keeps * (sums + seen.logp(some).clamp_min(FLOOR))
        flat[index] += 1

    def divergence(self, seen: Prediction) -> Tensor:
        """(B, W) nats, the same mean over all earlier predictions; +inf without any."""
        index, flat = self.index(seen), self.count.view(-1)
        count = flat[index]
        values = torch.full((len(index),), torch.inf, device=seen.logits.device)
        if self.kept is not None:
            steady = self.keeps == 1
            total = count if steady else self.keeps * (1 - self.keeps**count) / (1 - self.keeps)
            for here in pieces(seen.logits):
                now = seen.logp(here)
                mean = self.kept[index[here]] / total[here, None].clamp_min(1e-30)
                values[here] = (now.exp() * (now.clamp_min(FLOOR) - mean)).sum(-1)
            values.masked_fill_(count == 0, torch.inf)
        return seen.spread(values, torch.inf)
