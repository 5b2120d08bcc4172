"""When predictions settle, and when the sampler writes them.

Shapes: P positions, S steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def commitment(predicted: NDArray[np.integer]) -> NDArray[np.int16]:
    """(P,) the first step from which on the prediction of (P, S) is the last one (arXiv 2604.23235).

    k = min { s : y(s') = y(S - 1) for all s' >= s }
    """
    other = predicted != predicted[:, -1:]
    last = predicted.shape[1] - other[:, ::-1].argmax(1)  # one behind the last step that says something else
    return np.where(other.any(1), last, 0).astype(np.int16)


def share(moment: NDArray[np.integer], steps: int) -> NDArray[np.float64]:
    """(S,) the share of (P,) moments that lie at each step or before."""
    return np.bincount(moment, minlength=steps)[:steps].cumsum() / max(len(moment), 1)


def changes(predicted: NDArray[np.integer]) -> NDArray[np.int16]:
    """(P,) how often the prediction of (P, S) becomes another."""
    return (predicted[:, 1:] != predicted[:, :-1]).sum(1).astype(np.int16)
