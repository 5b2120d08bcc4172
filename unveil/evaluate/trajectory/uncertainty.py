"""Does a model know what it gets wrong? Calibration error, Brier score, and how well a score separates errors.

Shapes: P positions, D draws. `weight` (P,) or (D, P) counts a position so often; results are () or (D,).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15


def auroc(score: NDArray, positive: NDArray[np.bool_], weight: NDArray | None = None) -> NDArray[np.float64]:
    """How probable it is that a positive position scores above another one; equal scores count half.

    nan where all positions are of one kind.
    """
    weight = np.ones(len(score)) if weight is None else weight
    order = np.argsort(score, kind="stable")
    ranked, yes = score[order], positive[order]
    first = np.searchsorted(ranked, ranked, side="left")  # the group of equal scores that each is in
    stop = np.searchsorted(ranked, ranked, side="right")
    weight = weight[..., order]
    no = np.concatenate([np.zeros((*weight.shape[:-1], 1)), np.cumsum(weight * ~yes, -1)], -1)
    wins = (weight * yes * (no[..., first] + no[..., stop]) / 2).sum(-1)
    pairs = (weight * yes).sum(-1) * no[..., -1]
    return np.divide(wins, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def binned(confidence: NDArray, correct: NDArray[np.bool_], bins: int = BINS) -> NDArray[np.float64]:
    """(P, bins, 3) of each position: is it in this bin of equal width, its confidence, is it correct."""
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    inside = np.eye(bins)[which]
    return np.stack([inside, inside * confidence[:, None], inside * correct[:, None]], -1)


def ece(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The expected calibration error from (..., bins, 3) sums of `binned`: sum_b (n_b / n) |accuracy_b - confidence_b|.

    Guo et al., arXiv 1706.04599, equation 3.
    """
    return np.abs(sums[..., 2] - sums[..., 1]).sum(-1) / sums[..., 0].sum(-1)


def curve(sums: NDArray[np.float64]) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and size of each bin that is not empty, from (bins, 3) sums."""
    return [(conf / n, right / n, int(n)) for n, conf, right in sums.tolist() if n]


def brier(confidence: NDArray, correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(P, ...) squared distances of confidence from correctness; their mean is the Brier score."""
    return (confidence - correct) ** 2
