"""What a figure is at a given entropy, read between temperatures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

NEAR = 0.1  # nats of entropy within which two texts are compared


def at_entropy(points: Iterable[tuple[float, float]], entropy: float) -> float | None:
    """From (entropy, figure) at several temperatures to the figure at `entropy`, on straight lines; None out of reach.

    Perplexities of texts of unlike entropy do not compare (arXiv 2606.08417): whoever draws from a sharper distribution
    gains in one what he loses in the other.
    """
    line = sorted(points)
    if not line or not line[0][0] - NEAR <= entropy <= line[-1][0] + NEAR:
        return None
    for (low, left), (high, right) in pairwise(line):
        if low <= entropy <= high:
            share = (entropy - low) / (high - low) if high > low else 0.0
            return left + share * (right - left)
    return min(line, key=lambda point: abs(point[0] - entropy))[1]
