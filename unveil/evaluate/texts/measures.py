"""A figure of a set of texts as a function of how often each text counts, so that sets can be resampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
"""(D, T) how often each text counts in each set."""


class Measure(Protocol):
    def __call__(self, weights: Weights) -> NDArray[np.float64]:
        """(D,) one figure a set."""
        ...


@dataclass(frozen=True)
class Ratio:
    """A mean: the sum of something over the sum of something else."""

    sums: NDArray[np.float64]  # (T,)
    counts: NDArray[np.float64]  # (T,)

    @classmethod
    def mean(cls, values: NDArray[np.float64]) -> Ratio:
        """Of (T,) values; nan: a text that has none."""
        known = ~np.isnan(values)
        return cls(np.where(known, values, 0.0), known.astype(float))

    def __call__(self, weights: Weights) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ self.sums) / (weights @ self.counts)


@dataclass(frozen=True)
class Diversity:
    """The sum over dimensions of the variance of unit vectors: E|e|^2 - |E e|^2 = 1 - |E e|^2 (arXiv 2605.12522).

    It is the mean of 1 - cosine over all pairs of texts, a text with itself among them.
    """

    vectors: NDArray[np.float64]  # (T, E) of length 1; 0: the embedder knows nothing in it, and it does not count

    def __call__(self, weights: Weights) -> NDArray[np.float64]:
        count = weights @ self.vectors.any(1).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            middle = (weights @ self.vectors) / count[:, None]
        return 1 - (middle**2).sum(1)
