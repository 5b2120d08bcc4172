"""Intervals by a bootstrap over sequences: all positions of a drawn sequence come with it.

Shapes: P positions, C sequences, D draws, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..intervals import Interval

DRAWS = 1000
LEVELS = 0.025, 0.975


@dataclass(frozen=True)
class Resample:
    """Draws of sequences with replacement; the same for every quantity, so that differences are paired."""

    sequence: NDArray[np.integer]  # (P,) which sequence each position is of
    draws: int = DRAWS
    seed: int = 0

    @cached_property
    def names(self) -> NDArray[np.integer]:
        """(C,)"""
        return np.unique(self.sequence)

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """(D, C) how often each sequence is drawn."""
        count = len(self.names)
        drawn = np.random.default_rng(self.seed).multinomial(count, np.full(count, 1 / count), size=self.draws)
        return drawn.astype(float)

    def sums(self, values: NDArray, sequence: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """(C, ...) sums over each sequence of (P, ...) values."""
        where = np.searchsorted(self.names, self.sequence if sequence is None else sequence)
        found = np.zeros((len(self.names), *values.shape[1:]))
        if len(where):
            order = np.argsort(where, kind="stable")
            starts = np.flatnonzero(np.diff(where[order], prepend=-1))
            found[where[order][starts]] = np.add.reduceat(values[order].astype(float), starts)
        return found

    def drawn(self, values: NDArray, sequence: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """(1 + D, ...) sums over everything, then over each draw. `sequence`: of values of some positions alone."""
        by = self.sums(values, sequence)
        flat = by.reshape(len(by), -1)
        return np.concatenate([flat.sum(0, keepdims=True), self.times @ flat]).reshape(-1, *values.shape[1:])

    def ratio(self, above: NDArray, below: NDArray, sequence: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """(1 + D, ...) quotients of sums; nan where nothing lies below."""
        top, bottom = self.drawn(above, sequence), self.drawn(below, sequence)
        return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom != 0)

    def mean(self, values: NDArray, among: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """(1 + D, ...) means of (P, ...) values over the positions `among` (P,)."""
        few = np.ones(len(values), bool) if among is None else among
        some = values[few].astype(float)
        return self.ratio(some, np.ones_like(some), self.sequence[few])


def interval(drawn: NDArray[np.float64]) -> Interval:
    """The value of the sample and the middle 95 % of the draws, of (1 + D,) values; nan where there are none."""
    rest = drawn[1:][np.isfinite(drawn[1:])]
    if not len(rest) or not np.isfinite(drawn[0]):
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(rest, LEVELS)
    return Interval(float(drawn[0]), float(low), float(high))


def band(drawn: NDArray[np.float64]) -> list[Interval]:
    """Of (1 + D, S) values, one interval a step."""
    return [interval(column) for column in drawn.T]
