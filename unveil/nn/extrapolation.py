"""Confidence extrapolation: where a token's confidence is heading, and how sure that is (TSPD's CE, arXiv 2605.30753).

Reconstruction: the authors' equations were not public. Shapes: B rows, K positions in the block, N positions read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..canvas import Canvas
from ..prediction import Prediction

DAMPING = 0.9  # what is left of a slope after one step
EDGE = 1e-4  # confidences are kept this far from 0 and 1, where log-odds have no end
STEPS = 4  # steps in which an oscillation is looked for
TURNS = 2  # changes of direction in them that make one
FALL = -0.1  # log-odds a step: a slope below this is a decline


def log_odds(confidence: Tensor) -> Tensor:
    """ln(c / (1 - c)) of confidences that are kept within [1e-4, 1 - 1e-4]."""
    return confidence.clamp(EDGE, 1 - EDGE).logit()


@dataclass(frozen=True)
class Noise:
    """Variances, in squared log-odds. Numbers, or tensors of no dimension while they are being fitted."""

    level: float | Tensor = 0.02  # by which the level moves in a step, beyond its slope
    slope: float | Tensor = 0.02  # by which the slope moves in a step
    reading: float | Tensor = 0.10  # of one confidence about the level


@dataclass(frozen=True)
class Trend:
    """A damped local trend seen through noise, one for each number of a tensor: a Kalman filter in closed form.

    State [level, slope] with transition [[1, 1], [0, 0.9]]; the level alone is read. All fields have one shape (...).
    """

    level: Tensor
    slope: Tensor
    spread: Tensor  # variance of the level
    cross: Tensor  # covariance of level and slope
    bend: Tensor  # variance of the slope

    @classmethod
    def begin(cls, reading: Tensor) -> Trend:
        """From a first reading: level there, no slope, unit covariance."""
        zero, one = torch.zeros_like(reading), torch.ones_like(reading)
        return cls(reading, zero, one, zero, one)

    @classmethod
    def of(cls, columns: Tensor) -> Trend:
        """From (..., 5) numbers."""
        return cls(*columns.unbind(-1))

    @property
    def columns(self) -> Tensor:
        """(..., 5)"""
        return torch.stack([self.level, self.slope, self.spread, self.cross, self.bend], -1)

    def ahead(self, noise: Noise) -> Trend:
        """The forecast for one step later."""
        return Trend(
            self.level + self.slope,
            DAMPING * self.slope,
            self.spread + 2 * self.cross + self.bend + noise.level,
            DAMPING * (self.cross + self.bend),
            DAMPING**2 * self.bend + noise.slope,
        )

    def read(self, reading: Tensor, noise: Noise) -> Trend:
        """A forecast corrected by what came."""
        total = self.spread + noise.reading
        gain, steer, off = self.spread / total, self.cross / total, reading - self.level
        return Trend(
            self.level + gain * off,
            self.slope + steer * off,
            (1 - gain) * self.spread,
            (1 - gain) * self.cross,
            self.bend - steer * self.cross,
        )

    def surprise(self, reading: Tensor, noise: Noise) -> Tensor:
        """(...) nats: -log of the density that a forecast gave to what came."""
        total = self.spread + noise.reading
        return 0.5 * ((2 * math.pi * total).log() + (reading - self.level) ** 2 / total)

    def reach(self, level: float) -> Tensor:
        """(...) the probability that the level lies at `level` log-odds or above."""
        return 0.5 * torch.erfc((level - self.level) / (2 * self.spread).sqrt())


@dataclass
class Extrapolation:
    """Which tokens may be written ahead of time, and which had better wait. It needs no training.

    A position may be written ahead if its best token has stood for two predictions, its slope is positive, and within
    its horizon the forecast less kappa standard deviations reaches tau. The horizon is 0 where less than `coverage` of
    what stands left of it in the block is written (1 for the block's first position), and grows to `horizon` steps
    where all of it is. A position had better wait if its confidence turned twice in the last four steps, or falls below
    a slope of -0.1 before it has reached tau.
    """

    tau: float = 0.9  # probability at which a token counts as settled
    kappa: float = 0.5  # standard deviations to be on the safe side of a forecast
    coverage: float = 0.7  # share of what stands left of it that must be written; above 1: nothing is written ahead
    horizon: int = 3  # steps ahead at most
    veto: bool = True  # hold back what oscillates or declines
    noise: Noise = field(default_factory=Noise)

    def __post_init__(self):
        if self.kappa < 0:
            raise ValueError(f"kappa is {self.kappa}; expected 0 or more standard deviations")
        if self.coverage < 0:
            raise ValueError(f"coverage is {self.coverage}; expected a share from 0 to 1, or above 1 for no look-ahead")
        if self.horizon < 0 or self.horizon != int(self.horizon):
            raise ValueError(f"horizon is {self.horizon}; expected a number of steps, or 0 for no look-ahead")
        self.goal = math.inf if self.tau >= 1 else math.log(self.tau / (1 - self.tau)) if self.tau > 0 else -math.inf

    def enter(self, canvas: Canvas) -> None:
        """Begin a block: nothing is known of it."""
        cells, device = len(canvas.tokens) * canvas.block.width, canvas.tokens.device
        self.kept = torch.zeros(cells, 5, device=device)  # a Trend
        self.last = torch.zeros(cells, device=device)  # the latest reading
        self.moves = torch.zeros(cells, STEPS, device=device)  # signs of the latest differences of readings
        self.token = torch.full((cells,), -1, device=device)  # the best token; -1: never read
        self.streak = torch.zeros(cells, dtype=torch.long, device=device)  # predictions for which it has stood
        self.whole = True  # did the latest pass compute everything?

    def settle(self, canvas: Canvas, seen: Prediction, token: Tensor, chosen: Tensor) -> Tensor:
        """(B, W) what a controller has `chosen` and what may be written ahead, less what had better wait.

        Once a step, before anything is written. A forecast is about the likeliest token, so a `token` (B, W) drawn at
        random is written ahead only where it is that one.
        """
        early, late = self.judge(canvas, seen)
        return (chosen | (early & (token == seen.best))) & ~late

    def judge(self, canvas: Canvas, seen: Prediction) -> tuple[Tensor, Tensor]:
        """(B, W) what may be written ahead of time and (B, W) what had better wait, with this prediction counted."""
        self.loosen(canvas)
        at = cells(canvas, seen)
        confidence, best = seen.confidence.view(-1)[seen.read], seen.best.reshape(-1)[seen.read]
        reading = log_odds(confidence)
        known, same = self.token[at] >= 0, self.token[at] == best
        followed = Trend.of(self.kept[at]).ahead(self.noise).read(reading, self.noise)
        columns = torch.where(same[:, None], followed.columns, Trend.begin(reading).columns)
        trend = Trend.of(columns)
        move = torch.where(known, (reading - self.last[at]).sign(), 0)
        moves = torch.cat([self.moves[at, 1:], move[:, None]], 1)
        streak = torch.where(same, self.streak[at] + 1, 1)
        self.kept[at], self.last[at], self.moves[at] = columns, reading, moves
        self.token[at], self.streak[at] = best, streak
        early = self.reaches(trend, self.steps(canvas)[at]) & (trend.slope > 0) & (streak >= 2)
        turns = (moves[:, 1:] * moves[:, :-1] < 0).sum(-1)
        late = (turns >= TURNS) | ((trend.slope < FALL) & (confidence < self.tau))
        return seen.spread(early, False), seen.spread(late & self.veto, False)

    def loosen(self, canvas: Canvas) -> None:
        """Double the variances when a cache has just computed everything anew."""
        window = canvas.window
        whole = isinstance(window.starts, int) and window.starts == 0 and window.width == canvas.tokens.shape[1]
        if whole and not self.whole:
            self.kept[:, 2:] *= 2
        self.whole = whole

    def steps(self, canvas: Canvas) -> Tensor:
        """(B * K) how many steps ahead each position of the block may be judged."""
        written = ~canvas.block.take((canvas.tokens == canvas.mask_id) & ~canvas.given)
        left = written.cumsum(1) - written.long()
        covered = left / torch.arange(canvas.block.width, device=left.device).clamp(min=1)
        covered[:, 0] = 1
        steps = (self.horizon * (covered - self.coverage) / (1 - self.coverage + 1e-6)).ceil().clamp(1, self.horizon)
        return torch.where(covered >= self.coverage, steps, 0).view(-1)

    def reaches(self, trend: Trend, steps: Tensor) -> Tensor:
        """(N,) does a forecast of 1 to `steps` (N,) steps reach tau, with kappa standard deviations to spare?"""
        hit = torch.zeros_like(steps, dtype=torch.bool)
        for step in range(1, int(self.horizon) + 1):
            trend = trend.ahead(self.noise)
            hit = hit | ((steps >= step) & (trend.level - self.kappa * trend.spread.sqrt() >= self.goal))
        return hit


def cells(canvas: Canvas, seen: Prediction) -> Tensor:
    """(N,) where in the flattened (B, K) block the positions read are; all must lie in it."""
    row, place = seen.places
    starts = canvas.block.starts
    start = starts if isinstance(starts, int) else starts.to(row.device)[row]
    return row * canvas.block.width + place - start
