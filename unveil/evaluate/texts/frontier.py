"""A divergence frontier in the style of MAUVE: how much two sets of texts lie where the other has none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from .measures import Weights

SCALE = 5.0  # c of the paper
MIXTURES = np.linspace(1e-6, 1 - 1e-6, 25)


@dataclass(frozen=True)
class Frontier:
    """The area under {(exp(-c KL(q|r)), exp(-c KL(p|r)))}, r = l p + (1 - l) q (Pillutla et al., arXiv 2102.01454).

    p and q are histograms over clusters of embeddings. 1: equal; 1/252: nothing in common. It is not MAUVE: that embeds
    with GPT-2, and its figures do not compare with these. It depends on the number of texts and of clusters.
    """

    clusters: NDArray[np.int64]  # (T,) of each text
    other: NDArray[np.float64]  # (K,) shares of the clusters in the other set

    def __call__(self, weights: Weights) -> NDArray[np.float64]:
        here = weights @ np.eye(len(self.other))[self.clusters]
        return np.array([area(row / row.sum(), self.other) for row in here])


def frontier(
    texts: NDArray[np.float64], others: NDArray[np.float64], *, clusters: int | None = None, seed: int = 0
) -> Frontier:
    """From (T, E) and (U, E) embeddings, clustered together by k-means; None: a cluster for ten texts, as published."""
    count = max(2, round(min(len(texts), len(others)) / 10)) if clusters is None else clusters
    if not 2 <= count <= len(texts) + len(others):
        raise ValueError(f"clusters is {count}; expected from 2 to the number of texts, {len(texts) + len(others)}")
    both = np.concatenate([texts, others])
    count = min(count, len(np.unique(both, axis=0)))
    found = KMeans(count, random_state=seed).fit_predict(both).astype(np.int64)
    return Frontier(found[: len(texts)], np.bincount(found[len(texts) :], minlength=count) / len(others))


def area(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Under the frontier of two histograms (K,)."""
    points = [(0.0, 1.0), (1.0, 0.0)]
    for share in MIXTURES:
        r = share * p + (1 - share) * q
        points.append((float(np.exp(-SCALE * divergence(q, r))), float(np.exp(-SCALE * divergence(p, r)))))
    x, y = np.array(sorted(points, key=lambda point: (point[0], -point[1]))).T
    return float(((y[1:] + y[:-1]) * np.diff(x)).sum() / 2)


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL(p|q) in nats; q is above 0 wherever p is."""
    here = p > 0
    return float((p[here] * np.log(p[here] / q[here])).sum())
