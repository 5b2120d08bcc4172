"""What is counted: entropies of n-grams, how many of them differ, repetition, and the law of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .measures import Ratio, Weights


@dataclass(frozen=True)
class Grams:
    """All n-grams that lie within a text."""

    which: NDArray[np.int64]  # (N,) numbers, equal where n-grams are
    owner: NDArray[np.int64]  # (N,) the text each stands in
    kinds: int  # G
    texts: int  # T

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]], n: int) -> Grams:
        rows = [np.asarray(row, dtype=np.int64) for row in tokens]
        counts = np.array([max(len(row) - n + 1, 0) for row in rows])
        owner = np.repeat(np.arange(len(rows)), counts)
        which = np.zeros(len(owner), dtype=np.int64)
        for k in range(n):  # numbers of (k + 1)-grams from those of k-grams and the next token
            parts = [row[k : k + count] for row, count in zip(rows, counts, strict=True)]
            fresh = np.unique(np.concatenate(parts) if parts else which, return_inverse=True)[1]
            which = np.unique(which * (len(owner) + 1) + fresh, return_inverse=True)[1]
        return cls(which, owner, int(which.max()) + 1 if len(which) else 0, len(rows))

    def counts(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(G,) how often each stands in the set in which text t counts `weights[t]` times."""
        return np.bincount(self.which, weights=weights[self.owner], minlength=self.kinds).astype(np.float64)


@dataclass(frozen=True)
class Entropy:
    """H_n = -sum p ln p over the n-grams of all texts together, in nats (arXiv 2605.12522).

    The plug-in estimate: it grows with the number of tokens, so compare equal numbers alone.
    """

    grams: Grams

    def __call__(self, weights: Weights) -> NDArray[np.float64]:
        return np.array([entropy(self.grams.counts(row)) for row in weights])


def entropy(counts: NDArray[np.float64]) -> float:
    """Nats, of the distribution with these counts; nan where there are none."""
    counts = counts[counts > 0]
    total = counts.sum()
    return float(np.log(total) - (counts * np.log(counts)).sum() / total) if total else np.nan


@dataclass(frozen=True)
class Distinct:
    """Different n-grams over all n-grams, of all texts together (Li et al., arXiv 1510.03055)."""

    grams: Grams

    def __call__(self, weights: Weights) -> NDArray[np.float64]:
        counts = (self.grams.counts(row) for row in weights)
        return np.array([(each > 0).sum() / each.sum() if each.any() else np.nan for each in counts])


@dataclass(frozen=True)
class Zipf:
    """s in frequency ~ rank^-s: minus the slope of log frequency over log rank, by least squares over all tokens."""

    grams: Grams  # of one token each

    def __call__(self, weights: Weights) -> NDArray[np.float64]:
        return np.array([slope(self.grams.counts(row)) for row in weights])


def slope(counts: NDArray[np.float64]) -> float:
    """See `Zipf`; nan for fewer than two different tokens."""
    ranked = np.sort(counts[counts > 0])[::-1]
    if len(ranked) < 2:
        return np.nan
    x = np.log(np.arange(1, len(ranked) + 1))
    x -= x.mean()
    return float(-(x @ np.log(ranked)) / (x @ x))


def repetition(grams: Grams) -> Ratio:
    """The share of a text's n-grams that stood in it before, averaged over texts (seq-rep-n, arXiv 1908.04319)."""
    count = np.bincount(grams.owner, minlength=grams.texts)
    pairs = np.unique(grams.owner * max(grams.kinds, 1) + grams.which)
    different = np.bincount(pairs // max(grams.kinds, 1), minlength=grams.texts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Ratio.mean(1 - different / count)
