"""How sure a mean score and a paired difference are, with the problems they were measured on as the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
DRAWS = 4000  # resamplings
RULE = 3.0  # what n equal outcomes exclude: events of a probability of 3/n and more, at 95 % (the rule of three)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def wilson(scores: NDArray[np.floating], problems: NDArray[np.integer]) -> Interval:
    """Wilson's interval of the mean of (n,) scores in [0, 1]; equal `problems` (n,) count as one observation.

    Exact in form for scores of 0 and 1. Scores between vary less at the same mean, so for them it is on the safe side.
    """
    mean, n = float(scores.mean()), len(np.unique(problems))
    middle = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
    reach = Z / (1 + Z * Z / n) * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
    return Interval(mean, max(0.0, middle - reach), min(1.0, middle + reach))


def spread(values: NDArray[np.floating], weights: NDArray[np.floating] | None = None, seed: int = 0) -> Interval:
    """The mean of (n,) values of any size, weighted where they are ratios: percentiles of a bootstrap over items.

    One item has an interval without ends.
    """
    weights = np.ones(len(values)) if weights is None else weights
    mean = float(values @ weights / weights.sum())
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    times = resampled(len(values), seed)
    means = (times @ (values * weights)) / (times @ weights)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def resampled(count: int, seed: int) -> NDArray[np.integer]:
    """(DRAWS, n) how often each of n items is in each resampling."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)


def mcnemar(scores: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """The two-sided p-value of McNemar's exact test that two rows of 0 and 1, (n,) each on the same items, have one
    mean: items on which they differ fall either way like a fair coin."""
    one, other = int(((scores == 1) & (others == 0)).sum()), int(((scores == 0) & (others == 1)).sum())
    n, least = one + other, min(one, other)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2**n)


def paired(
    scores: NDArray[np.floating], others: NDArray[np.floating], problems: NDArray[np.integer], seed: int = 0
) -> Interval:
    """The mean of scores less others, (n,) each, on the same problems: percentiles of a bootstrap over problems.

    A problem that came several times is drawn with all its scores. Where scores hardly differ the bootstrap sees no
    spread at all; the interval is therefore never narrower than what so many problems can exclude, 3/n to either side.
    """
    _, where = np.unique(problems, return_inverse=True)
    sums = np.bincount(where, weights=(scores - others).astype(float))
    counts = np.bincount(where)
    n = len(sums)
    times = resampled(n, seed)
    means = (times @ sums) / (times @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(sums.sum() / counts.sum())
    return Interval(mean, max(-1.0, min(low, mean - RULE / n)), min(1.0, max(high, mean + RULE / n)))
