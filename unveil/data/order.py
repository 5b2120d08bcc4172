"""Documents packed end to end and cut into windows, in an order that is a function of seed and sample number.

Shapes: B rows, L positions, N documents, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ..objectives import Batch


class Stream(Protocol):
    """What a trainer reads: any sample at any time, without having read those before it."""

    @property
    def tokens(self) -> int: ...

    def count(self, length: int) -> int: ...

    def samples(self, first: int, count: int, length: int, *, seed: int = 0, documents: bool = True) -> Batch: ...

    def batch(self, step: int, rows: int, length: int, *, seed: int = 0, documents: bool = True) -> Batch: ...

    def windows(self, length: int, limit: int | None = None, *, documents: bool = True) -> Batch: ...

    def origins(self, ids: Sequence[int], length: int, *, seed: int = 0) -> list[str]: ...


def shuffle(n: int, *key: int) -> np.ndarray:
    """(n,) the permutation that belongs to `key`, numbers >= 0.

    By sorting raw Philox output: unlike the generators' methods it is the same in every version of numpy.
    """
    return np.argsort(raw(n, *key), kind="stable")


def raw(n: int, *key: int) -> np.ndarray:
    """(n,) uint64, a function of `key`."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(n)


@dataclass(frozen=True)
class Epoch:
    """One pass over the stream: which document comes when, where the first window begins, which window comes when."""

    key: tuple[int, int, int]  # seed, epoch, length
    documents: np.ndarray  # (N,)
    ends: np.ndarray  # (N,) where in the stream each of them ends
    offset: int
    windows: np.ndarray  # (T // L,)


class Packed:
    """Documents of a tokenised file as one stream, cut into windows of any length; longer documents are simply cut.

    An epoch puts the documents in a new order, begins at a new offset and runs around the end of the stream, so that
    no two epochs cut alike. Sample `i` depends on `i`, the length and the seed alone: not on batch size, on the
    split of a batch, or on what was read before.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray, names: Sequence[str], chosen: np.ndarray):
        """`data` (all tokens,) may be a memory map, `offsets` (documents + 1,), `chosen` (N,) document numbers."""
        self.data = data
        self.starts = offsets[:-1][chosen]
        self.lengths = np.diff(offsets)[chosen]
        self.names: list[str] = [names[int(i)] for i in chosen]
        self.tokens = int(self.lengths.sum())
        self._latest: Epoch | None = None

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.names)

    def document(self, i: int) -> np.ndarray:
        """(tokens of document i,) int64, with its beginning and end tokens."""
        return self.data[self.starts[i] : self.starts[i] + self.lengths[i]].astype(np.int64)

    def count(self, length: int) -> int:
        """Windows in one epoch. ValueError when the text is shorter than one window."""
        if length < 1:
            raise ValueError(f"a window needs at least 1 token, not {length}")
        if self.tokens < length:
            raise ValueError(f"the text is too short: {self.tokens} tokens for windows of {length}")
        return self.tokens // length

    def samples(self, first: int, count: int, length: int, *, seed: int = 0, documents: bool = True) -> Batch:
        """Samples `first` .. `first + count - 1`: tokens (count, length), all of them to be learned.

        With `documents`, the batch says which positions share one, counted from 0 in each row.
        """
        found = [self._window(*self._place(i, length, seed), length) for i in range(first, first + count)]
        return self._pack(found, range(first, first + count), documents, seed)

    def batch(self, step: int, rows: int, length: int, *, seed: int = 0, documents: bool = True) -> Batch:
        """What an optimiser step reads: samples `step * rows` .. `step * rows + rows - 1`."""
        found = self.samples(step * rows, rows, length, seed=seed, documents=documents)
        found.step = step
        return found

    def windows(self, length: int, limit: int | None = None, *, documents: bool = True) -> Batch:
        """The stream in its own order, cut from its start; of more than `limit` windows, as many, evenly spread."""
        total = self.count(length)
        count = total if limit is None else min(limit, total)
        order, ends = np.arange(len(self)), np.cumsum(self.lengths)
        places = [i * total // count for i in range(count)]
        found = [self._window(order, ends, place * length, length) for place in places]
        return self._pack(found, places, documents, 0)

    def origins(self, ids: Sequence[int], length: int, *, seed: int = 0) -> list[str]:
        """The names of the documents that these samples hold."""
        found = [
            self.names[which] for i in ids for which, _, _ in self._spans(*self._place(int(i), length, seed), length)
        ]
        return list(dict.fromkeys(found))

    def _place(self, index: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The epoch's documents, their ends, and where in the stream sample `index` begins."""
        if index < 0 or seed < 0:
            raise ValueError(f"sample and seed count from 0: {index} and {seed} were given")
        number, place = divmod(index, self.count(length))
        key = (seed, number, length)
        epoch = self._latest
        if epoch is None or epoch.key != key:
            documents = shuffle(len(self), seed, number, 0)
            offset = int(raw(1, seed, number, 1)[0] % self.tokens)
            windows = shuffle(self.count(length), seed, number, 2)
            epoch = Epoch(key, documents, np.cumsum(self.lengths[documents]), offset, windows)
            self._latest = epoch
        first = (epoch.offset + int(epoch.windows[place]) * length) % self.tokens
        return epoch.documents, epoch.ends, first

    def _spans(self, order: np.ndarray, ends: np.ndarray, first: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(document, where in the file, how many tokens) for `length` tokens from `first`, around the stream's end."""
        k = int(np.searchsorted(ends, first, side="right"))
        left = int(ends[k]) - first  # tokens of this document still to come
        while length > 0:
            which = int(order[k])
            some = min(left, length)
            yield which, int(self.starts[which] + self.lengths[which]) - left, some
            length, k = length - some, (k + 1) % len(order)
            left = int(self.lengths[order[k]])

    def _window(self, order: np.ndarray, ends: np.ndarray, first: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(L,) tokens and (L,) document numbers from `first` in the stream."""
        tokens, documents = np.empty(length, np.int64), np.empty(length, np.int64)
        filled = 0
        for number, (_, start, some) in enumerate(self._spans(order, ends, first, length)):
            tokens[filled : filled + some] = self.data[start : start + some]
            documents[filled : filled + some] = number
            filled += some
        return tokens, documents

    def _pack(
        self, found: list[tuple[np.ndarray, np.ndarray]], ids: Sequence[int], documents: bool, seed: int
    ) -> Batch:
        tokens = torch.from_numpy(np.stack([row for row, _ in found]))
        marks = torch.from_numpy(np.stack([row for _, row in found])) if documents else None
        answer = torch.ones_like(tokens, dtype=torch.bool)
        return Batch(tokens, answer, documents=marks, ids=torch.tensor(list(ids)), seed=seed)
