"""Self-BLEU: how much of each text can be put together from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ORDER = 4  # n-grams of 1 to 4 tokens, all of equal weight
EPSILON = 0.1  # in place of no match (Chen and Cherry, 2014, method 1)


def self_bleu(texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """(T,) sentence BLEU-4 of each text with all others as its references (Texygen, arXiv 1802.01886).

    An n-gram counts at most as often as in the reference that has most of it. That reference is looked up: the two
    largest counts of each n-gram are kept with the text of the largest, so all T values cost one pass over the texts.
    Texts of fewer than 4 tokens get nan.
    """
    sizes = np.array([len(text) for text in texts])
    log = np.zeros(len(texts))
    for n in range(1, ORDER + 1):
        counts = [Counter(zip(*(text[k:] for k in range(n)), strict=False)) for text in texts]
        most: dict[tuple[int, ...], tuple[int, int, int]] = {}  # the largest count, its text, the second largest
        for i, each in enumerate(counts):
            for gram, count in each.items():
                best, owner, second = most.get(gram, (0, -1, 0))
                most[gram] = (count, i, best) if count > best else (best, owner, max(second, count))
        for i, each in enumerate(counts):
            right = 0
            for gram, count in each.items():
                best, owner, second = most[gram]
                right += min(count, second if owner == i else best)
            log[i] += np.log(max(right, EPSILON) / max(sizes[i] - n + 1, 1)) / ORDER
    found = np.exp(log) * np.array([brevity(sizes, i) for i in range(len(texts))])
    return np.where(sizes < ORDER, np.nan, found)


def brevity(sizes: NDArray[np.int64], i: int) -> float:
    """BLEU's penalty for a text shorter than the reference nearest to it in length, the shorter of two as near."""
    others = np.delete(sizes, i)
    if not len(others) or not sizes[i]:
        return 0.0
    nearest = min(others, key=lambda size: (abs(size - sizes[i]), size))
    return float(min(1.0, np.exp(1 - nearest / sizes[i])))
