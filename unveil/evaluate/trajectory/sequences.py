"""Windows of text with the class of each token, and which of their tokens are masked.

Shapes: N windows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from ...codecs.text import Text
from ...data import Packed
from ...noise import uniform
from .labels import Labels

AROUND = 24  # tokens on either side of a window that labels see
MASK = 11  # keys the noise that chooses what is masked


@dataclass(frozen=True)
class Sequences:
    """Windows, each within one document."""

    tokens: NDArray[np.int32]  # (N, L)
    fine: NDArray[np.int16]  # (N, L) classes
    maskable: NDArray[np.bool_]  # (N, L) False for special tokens and for the first of a window
    source: NDArray[np.int32]  # (N,) a number for each window of the text: equal ones are the same text

    def take(self, rows: NDArray[np.integer] | slice) -> Sequences:
        """Some of them."""
        return Sequences(self.tokens[rows], self.fine[rows], self.maskable[rows], self.source[rows])

    def hidden(self, share: float, seed: int) -> NDArray[np.bool_]:
        """(N, L) this share of the maskable positions, at least one; a function of the seed and the window."""
        place = torch.arange(self.tokens.shape[1])
        level = uniform(seed, MASK, torch.from_numpy(self.source.astype(np.int64))[:, None], place).numpy()
        rank = np.where(self.maskable, level, np.inf).argsort(1).argsort(1)
        count = np.maximum(np.rint(share * self.maskable.sum(1)), 1)
        return (rank < count[:, None]) & self.maskable


def draw(side: Packed, text: Text, labels: Labels, length: int, count: int) -> Sequences:
    """At most `count` windows, evenly spread over the documents that are long enough.

    ValueError where no document is, or where none can be labelled.
    """
    places = [(i, k) for i in range(len(side)) for k in range(int(side.lengths[i]) // length)]
    if not places:
        raise ValueError(f"no document has {length} tokens, the longest has {side.lengths.max()}: lower --length")
    special = np.array(sorted(text.tokenizer.get_added_tokens_decoder()), dtype=np.int64)
    spread = [(n, *places[n]) for n in sorted({i * len(places) // count for i in range(count)})]
    found, wrong = [], ""
    for document, windows in groupby(spread, key=lambda each: each[1]):
        ids = side.document(document)
        starts = [(number, k * length) for number, _, k in windows]
        try:
            classes = classified(ids, [start for _, start in starts], length, text, labels)
        except ValueError as error:  # a document that cannot be labelled
            wrong = f"{side.names[document]} is {error}"
            continue
        for (number, start), fine in zip(starts, classes, strict=True):
            window = ids[start : start + length]
            maskable = ~np.isin(window, special)
            maskable[0] = False
            if maskable.any():
                found.append((window.astype(np.int32), fine, maskable, number))
    if not found:
        raise ValueError(f"no document can be labelled as {labels.name}: {wrong or 'they hold special tokens alone'}")
    tokens, fine, maskable, source = (np.stack(column) for column in zip(*found, strict=True))
    return Sequences(tokens, fine, maskable, source.astype(np.int32))


def classified(
    ids: NDArray[np.int64], starts: list[int], length: int, text: Text, labels: Labels
) -> list[NDArray[np.int16]]:
    """(L,) classes of each window of a document, labelled with what stands around it."""
    if labels.whole:
        whole = labels.of(text.pieces(ids))
        return [whole[start : start + length] for start in starts]
    found = []
    for start in starts:
        first = max(start - AROUND, 0)
        some = labels.of(text.pieces(ids[first : start + length + AROUND]))
        found.append(some[start - first : start - first + length])
    return found
