"""Commit what is surer than tokens used to be when they were committed, and take back what has lost most (Saber)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction
from . import Decoder, top

SCORES = ("drop_argmax", "drop_token", "low_prob")


@dataclass
class Saber(Decoder):
    """Adaptive acceleration and backtracking (arXiv 2510.18165), by the rules of the published code.

    The level is the mean probability at which the row's tokens were committed, 1 before the first. Committed are the
    blanks above it, or the `n` surest if they are fewer. Then min(max(floor(n / 2), ceil(k / mu)), k - 1) tokens of the
    block are taken back, k being the number just committed, unless the block is full. So every step gains a token.

    remask says which:

    drop_argmax  those whose position's largest probability has fallen most, or risen least, since the last prediction
                 (the code for LLaDA)
    drop_token   the same of the probability of the token that stands there (the paper)
    low_prob     those whose token is least probable now; the level then counts the first commit of a position, where
                 the others count the latest (the code for Dream)

    Only tokens of the current block are committed and taken back, so every cache serves. The leader of a leader model's
    block stays: it is an ordinary next-token prediction, and nothing in its block changes it.
    """

    revises = True
    takes_back = True

    n: int = 2  # commits a step at least
    mu: float = 8.0  # commits for each token taken back
    remask: str = "drop_argmax"
    take_back: bool = True  # False: no backtracking
    level: float | None = None  # a fixed level; None: it adapts
    before: Tensor = field(init=False, repr=False)  # (B, L) what the last prediction said of each position
    commits: Tensor = field(init=False, repr=False)  # (B, L) probability at the commit; -inf: never committed

    def __post_init__(self):
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"n is {self.n}; expected at least one commit a step")
        if not self.mu >= 1:
            raise ValueError(f"mu is {self.mu}; expected at least one commit for each token taken back")
        if self.remask not in SCORES:
            raise ValueError(f"no remask called {self.remask!r}; there are: {', '.join(SCORES)}")

    def begin(self, canvas: Canvas) -> None:
        self.before = torch.zeros(canvas.tokens.shape, device=canvas.tokens.device)
        self.commits = torch.full_like(self.before, -torch.inf)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed = canvas.open & seen.seen
        sure = allowed & (p > self.bar())
        few = sure.sum(-1, keepdim=True) < self.n
        chosen = torch.where(few, top(p, allowed, self.n), sure)
        tokens = torch.where(chosen, token, canvas.seen)
        kept = canvas.window.take(self.commits)
        counted = chosen & (kept == -torch.inf) if self.remask == "low_prob" else chosen
        canvas.window.put(self.commits, torch.where(counted, p, kept))
        return self.backtracked(canvas, seen, tokens, chosen) if self.take_back else tokens

    def bar(self) -> Tensor | float:
        """(B, 1) the level to be above."""
        if self.level is not None:
            return self.level
        ever = self.commits > -torch.inf
        count = ever.sum(1, keepdim=True)
        mean = torch.where(ever, self.commits, 0.0).sum(1, keepdim=True) / count.clamp_min(1)
        return mean.masked_fill(count == 0, 1.0)

    def backtracked(self, canvas: Canvas, seen: Prediction, tokens: Tensor, chosen: Tensor) -> Tensor:
        """(B, W) `tokens` less what is taken back, `chosen` being the positions just committed."""
        standing = canvas.free & seen.seen & (tokens != canvas.mask_id)
        now = seen.confidence
        if self.remask != "drop_argmax":
            now = torch.where(standing, seen.probability(tokens), now)
        before = canvas.window.take(self.before)
        score = now if self.remask == "low_prob" else now - before
        canvas.window.put(self.before, torch.where(seen.seen, now, before))
        if canvas.look.leads:
            standing &= canvas.window.positions(tokens.device) != canvas.starts.to(tokens.device)[:, None]
        gained = chosen.sum(1)
        back = (gained / self.mu).ceil().long().clamp_min(self.n // 2).minimum(gained - 1)
        left = (canvas.open & ~chosen).any(1)
        return torch.where(top(-score, standing, back * left), canvas.mask_id, tokens)
