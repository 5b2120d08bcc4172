"""Story cloze: a name or another word that the story has had before is blank where it comes again."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import Example, Listed, held_out

SEPARATOR = "<|endoftext|>"
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b")  # a capital that begins no sentence
THING = re.compile(r"(?<=\bthe )[a-z]{3,}\b")


@dataclass
class Cloze(Listed):
    """One word of each story: a name, or what follows "the" and has followed "a" or "an" before.

    The prompt is the story up to the word, the tail what follows to the end of that paragraph. A hash of the story says
    its split.

    data    a text file of stories, also as .xz, with "<|endoftext|>" or else an empty line between them
    before  most characters of a prompt
    after   most characters of a tail
    """

    data: str = ""
    before: int = 600
    after: int = 200
    length: int = field(default=6, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.before < 1 or self.after < 0:
            raise ValueError(f"expected room before the word and none or more behind, got {self.before}, {self.after}")
        if not self.data:
            raise ValueError("cloze needs stories: cloze(data='stories.txt')")

    def pool(self, split: str, numbers: np.random.Generator) -> list[Example]:
        return list(self.problems(split, numbers))

    def problems(self, split: str, numbers: np.random.Generator) -> Iterator[Example]:
        for story in dict.fromkeys(stories(self.data)):
            if held_out(story) != (split == "test"):
                continue
            places = [found for found in asked(story) if found.start() <= self.before]
            if places:
                chosen = places[numbers.integers(len(places))]
                tail = story[chosen.end() :].split("\n")[0][: self.after]
                yield Example(story[: chosen.start() - 1], " " + chosen[0], tail)

    def score(self, example: Example, completion: str) -> float:
        return float(completion.strip() == example.answer.strip())


def asked(story: str) -> list[re.Match[str]]:
    """The words that the story has had before."""
    names = (found for found in NAME.finditer(story) if re.search(rf"\b{found[0]}\b", story[: found.start()]))
    things = (found for found in THING.finditer(story) if re.search(rf"\ban? {found[0]}\b", story[: found.start()]))
    return sorted([*names, *things], key=lambda found: found.start())


def stories(path: str) -> Iterator[str]:
    """The texts of a file. ValueError when it is not there or not text."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        data = file.read_bytes()
        text = (lzma.decompress(data) if file.suffix == ".xz" else data).decode()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    for part in text.split(SEPARATOR if SEPARATOR in text else "\n\n"):
        if part.strip():
            yield part.strip()
