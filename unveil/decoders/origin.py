"""Follow Dream's clock: how many blanks a step reveals is a matter of time, and which ones of a score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..noise import uniform
from ..prediction import Prediction
from . import Decoder, top

REVEAL = 2  # keys the noise that orders positions
RANKING = 3  # keys the noise that is added to scores
KINDS = ("origin", "maskgit_plus", "margin", "entropy")


@dataclass
class Origin(Decoder):
    """Dream's four samplers (arXiv 2508.15487 and its code). Times fall evenly from 1 to `eps` over a block's steps.

    A step from t to s reveals a blank with probability 1 - s/t, the last step all. `origin` lets each blank fall by
    itself; the others reveal floor(blanks * (1 - s/t)), those of the best score: the probability of the chosen token
    (`maskgit_plus`), its lead over the second, or the negative entropy. `alg_temp` draws them instead, one after the
    other without replacement, with probabilities softmax(score / alg_temp).

    Steps that would reveal nothing change nothing, so each row skips its own: the clock moves on without a forward.
    More steps than a row has positions are not counted. All scores are those of the plain distribution, where Dream
    takes the tempered one.
    """

    kind: str = "origin"
    alg_temp: float = 0.0
    eps: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.alg_temp < 0:
            raise ValueError(f"alg_temp is {self.alg_temp}; expected 0 (the best scores) or more")
        if self.alg_temp and self.kind == "origin":
            raise ValueError("alg_temp draws by a score, and kind 'origin' has none: expected 0, or another kind")
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps is {self.eps}; expected a last time of at least 0 and below 1")

    def enter(self, canvas: Canvas) -> None:
        self.clock = torch.zeros_like(canvas.taken)  # (B,) steps that each row has made or skipped

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        if self.kind == "origin":
            return torch.where(self.fallen(canvas, allowed), token, canvas.seen)
        score = {"maskgit_plus": p, "margin": seen.margin, "entropy": -seen.entropy}[self.kind]
        if self.alg_temp:
            gumbel = -(-seen.noise(RANKING).log()).log()
            score = score / self.alg_temp + seen.spread(gumbel, 0.0)
        return torch.where(top(score, allowed, self.count(canvas)), token, canvas.seen)

    def fallen(self, canvas: Canvas, allowed: Tensor) -> Tensor:
        """(B, W) True where the next blanks are revealed: each blank's step is drawn once, then the soonest are due."""
        place, last = canvas.window.positions(allowed.device), canvas.patience - 1
        moment = uniform(canvas.seeds[:, None], REVEAL, place) * (last + 1) / (1 - self.eps)
        moment = moment.floor().minimum(last.double())
        return allowed & (moment == moment.masked_fill(~allowed, torch.inf).amin(-1, keepdim=True))

    def count(self, canvas: Canvas) -> Tensor | int:
        """(B,) blanks each row reveals at its next step that reveals any; a leader stands outside of time."""
        if canvas.leading:
            return 1
        steps, left = canvas.patience, canvas.open.sum(-1, keepdim=True)
        step = torch.arange(canvas.budget, device=left.device)
        count = (left * (1 - self.eps) / (steps - step * (1 - self.eps))).floor().long()
        count = torch.where(step == steps - 1, left, count)
        moves = (step >= self.clock[:, None]) & (step < steps) & (count > 0)
        now = moves.int().argmax(-1, keepdim=True)
        self.clock = now[:, 0] + 1
        return count.gather(-1, now)[:, 0]
