"""WikiText: how likely a model finds articles of Wikipedia."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .. import records
from ..records import Hub, Row
from . import Published, Reading

TITLE = re.compile(r"(?m)^(?= ?= [^=\n]+ = ?$)")  # of an article; those of its sections have more signs


@dataclass
class Wikitext(Published, Reading):
    """Merity et al. 2016, 1609.07843: whole articles, each beginning with its title. A file is their text as published,
    " = Title = " on a line of its own; rows of the hub have `text`, a line each.

    Words are what spaces part, also after a tokenizer; bytes are those of UTF-8.

    most  characters of an article that are read, to its last whole word; 0: all
    """

    files = ("wikitext*.txt", "wikitext*.jsonl", "wiki.*.raw", "wiki.*.tokens")
    hub = Hub("Salesforce/wikitext", "wikitext-2-raw-v1", "validation")

    most: int = 0

    def __post_init__(self):
        if self.most < 0:
            raise ValueError(f"most is {self.most}; expected a number of characters, or 0 for whole articles")

    def rows(self, split: str = "test") -> list[Row]:
        place = records.located(self.data, self.files) if self.data else None
        if place is None or place.suffix == ".jsonl":
            whole, name = "".join(row.text("text") for row in super().rows(split)), self.data or self.hub.id
        else:
            whole, name = records.opened(place), place.name
        found = [part.strip() for part in TITLE.split(whole) if part.strip()]
        if not found:
            raise ValueError(f"{name} is empty: it holds no text")
        return [Row({"text": part}, f"{name}, article {number}") for number, part in enumerate(found, 1)]

    def texts(self, count: int, split: str = "test", seed: int = 0) -> list[str]:
        return [self.begun(row.text("text")) for row in self.taken(count, split, seed)]

    def begun(self, text: str) -> str:
        """As much of an article as is read."""
        return text[: self.most].rsplit(" ", 1)[0].rstrip() if 0 < self.most < len(text) else text
