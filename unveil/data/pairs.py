"""Pairs of a chosen and a rejected answer to one prompt, as rows that hold both side by side.

Shapes: B rows, L positions of one answer with its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..codecs.text import Text
from ..objectives import Batch
from .chat import Conversations, Row, responses
from .corpus import Corpus, Unit, digest, split
from .sources import rows as read_rows

SIDES = ("chosen", "rejected")


class Pairs(Conversations):
    """Conversations whose rows also have a rejected answer: batches (B, 2L), the chosen one at the left.

    A pair is left out when either of its answers is longer than the context.
    """

    def __init__(self, chosen: Sequence[Row], rejected: Sequence[Row], end: int):
        """Rows of the same prompts in the same order; `end` is the end-of-text id."""
        assert [row[:2] for row in chosen] == [row[:2] for row in rejected]
        super().__init__(chosen, end)
        self.rejected = Conversations(rejected, end)

    def size(self, i: int) -> int:
        """Tokens of the longer of a pair."""
        return max(super().size(i), self.rejected.size(i))

    def windows(self, length: int, limit: int | None = None, *, documents: bool = True) -> Batch:
        """The chosen answers alone (B, L), to be scored like any conversation."""
        return Conversations(self.conversations, self.end).windows(length, limit, documents=documents)

    def pack(self, chosen: Sequence[int], ids: Sequence[int], length: int, documents: bool, seed: int) -> Batch:
        left = super().pack(chosen, ids, length, documents, seed)
        right = self.rejected.pack(chosen, ids, length, documents, seed)
        marks = None
        if left.documents is not None and right.documents is not None:
            marks = torch.cat([left.documents, right.documents + 1], 1)
        tokens, answer = torch.cat([left.tokens, right.tokens], 1), torch.cat([left.answer, right.answer], 1)
        return replace(left, tokens=tokens, answer=answer, documents=marks)


def compare(
    sources: str | Sequence[str], text: Text, *, held_out: float = 0.02, seed: int = 0, by: Unit = "tokens"
) -> Corpus[Pairs]:
    """Pairs from .jsonl, .json or .parquet rows with the texts `prompt`, `chosen` and `rejected`.

    Both answers are put behind the prompt as `converse` does. About the share `held_out` of the pairs is held out,
    equal prompts on the same side.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"the held-out share lies in [0, 1), not {held_out}")
    if text.eos_id is None:
        raise ValueError("answers need an end-of-text token, and this tokenizer has none")
    made: tuple[list[Row], list[Row]] = [], []
    digests: list[bytes] = []
    sizes: list[int] = []
    for name, row in read_rows(sources):
        if not all(isinstance(row.get(key), str) for key in ("prompt", *SIDES)):
            has = ", ".join(sorted(row))
            raise ValueError(f"{name} should have prompt, chosen and rejected as texts; its fields are {has}")
        if row["chosen"] == row["rejected"]:
            raise ValueError(f"{name}: the chosen and the rejected answer are the same text")
        for rows, side in zip(made, SIDES, strict=True):
            rows += responses(name, {"prompt": row["prompt"], "response": row[side]}, text)
        digests.append(digest(row["prompt"]))
        texts = [row["prompt"], row["chosen"], row["rejected"]]
        sizes.append(sum(map(len, texts)) if by == "characters" else sum(len(rows[-1][2]) for rows in made))
    away = split(digests, np.array(sizes), held_out, seed)
    train, rest = (
        Pairs(*([row for row, taken in zip(rows, side, strict=True) if taken] for rows in made), end=text.eos_id)
        for side in (~away, away)
    )
    return Corpus(train, rest, [name for name, _, _ in made[0]])
