"""How sure a figure of a set of texts is, and the difference of two, with the texts as the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .measures import Measure

DRAWS = 2000  # resampled sets
GROUPS = 500  # at most so many texts are left out in turn; of more, as many groups of them
TOGETHER = 4_000_000  # weights made at a time
ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, by a bootstrap over texts of what each contributes.

    A resampled set holds some texts twice and others not at all. Figures that depend on how much different text there
    is, such as entropies, come out too small on it and vary too much: up to twelve times for entropies of 3-grams. So
    each text's contribution is taken by leaving it out of the whole set (the jackknife's influence values), and the
    contributions are what is resampled. For a mean that is the bootstrap itself.
    """

    value: float
    off: NDArray[np.float64] = field(repr=False)  # (D,) how far resampled figures lie from it
    texts: int

    @property
    def low(self) -> float:
        return self.value + float(np.quantile(self.off, ENDS[0]))

    @property
    def high(self) -> float:
        return self.value + float(np.quantile(self.off, ENDS[1]))

    @property
    def stderr(self) -> float:
        return float(self.off.std())

    def less(self, other: Estimate) -> Estimate:
        """The difference as a figure of its own. Where texts are paired, both were resampled with one seed."""
        return Estimate(self.value - other.value, self.off - other.off, self.texts)

    @property
    def spread(self) -> float:
        """What one text contributes: of a mean the standard deviation of texts, and likewise of other figures."""
        return self.stderr * math.sqrt(self.texts)


@dataclass(frozen=True)
class Difference:
    """One figure less another, its 95 % interval, and its size beside what single texts vary by.

    `effect` is Cohen's d where the figure is a mean over texts: the difference over the root mean square of both
    spreads, or over the spread of differences where texts are paired.
    """

    value: float
    low: float
    high: float
    effect: float

    @property
    def sign(self) -> int:
        """Of what lies outside of chance: 1 above, -1 below, 0 neither."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    @property
    def size(self) -> str:
        """The effect for people; "-" where no text differs from another."""
        return f"{self.effect:+.2f}" if math.isfinite(self.effect) else "-"

    @property
    def told(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f}, effect {self.size})"


def estimate(measure: Measure, texts: int, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """The figure of `texts` texts. Figures of as many texts and one seed are resampled alike."""
    if draws < 2:
        raise ValueError(f"draws is {draws}; expected at least 2 resampled sets")
    found = influence(measure, texts)
    numbers, groups, off = np.random.default_rng(seed), len(found), []
    for start in range(0, draws, size := max(1, TOGETHER // groups)):
        count = min(size, draws - start)
        off.append(numbers.multinomial(groups, np.full(groups, 1 / groups), size=count) @ found / groups)
    return Estimate(float(measure(np.ones((1, texts)))[0]), np.concatenate(off), texts)


def influence(measure: Measure, texts: int) -> NDArray[np.float64]:
    """(G,) what each text, or group of texts, adds to the figure, times G; they sum to 0."""
    groups = min(texts, GROUPS)
    part, found = np.arange(texts) * groups // texts, []
    for start in range(0, groups, size := max(1, TOGETHER // texts)):
        these = np.arange(start, min(start + size, groups))
        found.append(measure((part != these[:, None]).astype(float)))
    without = np.concatenate(found)
    return (groups - 1) * (without.mean() - without)


def difference(one: Estimate, other: Estimate, *, paired: bool = False) -> Difference:
    """`one` less `other`; `paired`: text i of both belongs together, and both were resampled with one seed."""
    found = one.less(other)
    spread = found.spread if paired else math.hypot(one.spread, other.spread) / math.sqrt(2)
    return Difference(found.value, found.low, found.high, found.value / spread if spread else math.nan)
