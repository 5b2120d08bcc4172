"""Problems with a right answer. One task per file; the file name is its name on the command line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import ClassVar

import numpy as np

SPLITS = ("train", "test")
AWAY = 8  # one problem of so many is for tests
PATIENCE = 10_000  # draws in a row that give nothing new, before a task is taken to have no more problems


@dataclass(frozen=True)
class Example:
    """A problem: `answer` is one right completion of `prompt`, and `tail` is what comes after it, if anything does."""

    prompt: str
    answer: str
    tail: str = ""


@dataclass
class Task(ABC):
    """Options are fields; `anchor` is what a completion writes before its final answer, "" where it writes nothing."""

    anchor: ClassVar[str] = ""

    length: int = field(default=32, kw_only=True)  # tokens of room for the answer and its end

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length is {self.length}; expected at least one token of room for the answer")

    @abstractmethod
    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        """`count` problems of one split, always the same for the same seed.

        No problem is in both splits, whatever the seeds. Those of the test split differ from each other. ValueError
        when there are not as many.
        """

    @abstractmethod
    def score(self, example: Example, completion: str) -> float:
        """How right a completion is, from 0 to 1: the text up to the end-of-text token, without it."""


@dataclass
class Drawn(Task):
    """Problems without end, made from random numbers; a hash of the prompt says which split one belongs to."""

    @abstractmethod
    def draw(self, numbers: np.random.Generator) -> Example:
        """A problem of either split."""

    def keeps(self, example: Example, split: str) -> bool:
        """Does a problem belong to this split?"""
        return held_out(example.prompt) == (split == "test")

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        """As in `Task`: a beginning of the endless row of a seed. Problems of the training split may come again."""
        checked(count, split, seed)
        name = type(self).__name__.lower()
        numbers = np.random.default_rng([seed, SPLITS.index(split), *name.encode()])
        found: list[Example] = []
        known: set[Example] = set()
        idle = 0
        while len(found) < count:
            if idle > PATIENCE:
                raise ValueError(f"{count} different {split} problems of {name} were asked for; found {len(found)}")
            idle += 1
            example = self.draw(numbers)
            if self.keeps(example, split) and not (split == "test" and example in known):
                found.append(example)
                known.add(example)
                idle = 0
        return found


@dataclass
class Listed(Task):
    """Problems made from texts that are there: as many as these give, in an order that the seed decides."""

    @abstractmethod
    def pool(self, split: str, numbers: np.random.Generator) -> list[Example]:
        """All problems of a split; random numbers decide what of a text is asked."""

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        """As in `Task`."""
        checked(count, split, seed)
        numbers = np.random.default_rng([seed, SPLITS.index(split)])
        found = self.pool(split, numbers)
        if count > len(found):
            name = type(self).__name__.lower()
            raise ValueError(f"{count} {split} problems of {name} were asked for; there are {len(found)}")
        return [found[i] for i in numbers.permutation(len(found))[:count]]


def held_out(content: str) -> bool:
    """Is this content for tests? A blake2b hash of it decides, so that every process and every seed agrees."""
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest()) % AWAY == 0


def checked(count: int, split: str, seed: int) -> None:
    """ValueError for what `examples` cannot be asked."""
    if split not in SPLITS:
        raise ValueError(f"no split called {split!r}; there are: {', '.join(SPLITS)}")
    if count < 1 or seed < 0:
        raise ValueError(f"expected a count of at least 1 and a seed of at least 0, got {count} and {seed}")
