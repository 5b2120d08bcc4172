"""Sets of texts: read, split into tokens, cut to equal sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...codecs.text import Text
from ...data.sources import read

FIELDS = ("text", "completion")
LEAST = 10  # texts: fewer say nothing of a spread


@dataclass(frozen=True)
class Collection:
    """Texts and their tokens, as numbers that are equal where the tokens are."""

    name: str
    texts: list[str]
    tokens: list[list[int]]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def size(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.tokens))

    def first(self, count: int) -> Collection:
        """So many texts, evenly spread."""
        if count >= len(self):
            return self
        which = [i * len(self) // count for i in range(count)]
        return Collection(self.name, [self.texts[i] for i in which], [self.tokens[i] for i in which])

    def within(self, budget: int) -> list[list[int]]:
        """The tokens of the texts in turn until there are `budget`; the one that goes beyond is cut."""
        found = []
        for row in self.tokens:
            found.append(row[:budget])
            budget -= len(found[-1])
        return found


def collect(
    source: str, text: Text | None = None, *, field: str | None = None, length: int | None = None
) -> Collection:
    """The texts of a file or folder, as `data.sources.read` reads them.

    text    whose tokens count; None: words, as space divides them
    field   of rows; None: `text`, or `completion` where there is no `text`
    length  every text is cut to so many tokens, and shorter ones are left out

    ValueError, with the file's name, for what is missing, empty, not UTF-8 or without the field, and for fewer than
    10 texts.
    """
    if length is not None and length < 1:
        raise ValueError(f"length is {length}; expected at least one token a text")
    texts = [document.text for document in read(source, field=field or FIELDS)]
    return gather(source, texts, text, length=length)


def gather(name: str, texts: Sequence[str], text: Text | None = None, *, length: int | None = None) -> Collection:
    """Texts as a collection; see `collect`."""
    kept, tokens = [], []
    numbers: dict[str, int] = {}
    rows = None if text is None else text.encode_many(texts)
    for i, each in enumerate(texts):
        words = list(re.finditer(r"\S+", each))
        ids = [numbers.setdefault(word[0], len(numbers)) for word in words] if rows is None else rows[i]
        if length is not None:
            if len(ids) < length:
                continue
            if len(ids) > length:
                each = each[: words[length - 1].end()] if text is None else text.decode(ids[:length])
                ids = ids[:length]
        kept.append(each)
        tokens.append(ids)
    if len(kept) < LEAST:
        long = f" of {length} tokens or more" if length else ""
        raise ValueError(
            f"{name} holds {len(kept)} text{'' if len(kept) == 1 else 's'}{long}; expected at least {LEAST} "
            "(.jsonl rows, a .json list, or .txt with <|endoftext|> between texts)"
        )
    return Collection(name, kept, tokens)
