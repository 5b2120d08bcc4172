"""Problems with a right answer. One task per file; the file name is its name on the command line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import ClassVar

import numpy as np

from .. import records
from ..programs import tried
from ..records import Hub, Row
from ..sandbox import Result

SPLITS = ("train", "test")
AWAY = 8  # one problem of so many is for tests
PATIENCE = 10_000  # draws in a row that give nothing new, before a task is taken to have no more problems


@dataclass(frozen=True)
class Example:
    """A problem: `answer` is one right completion of `prompt`, and `tail` is what comes after it, if anything does."""

    prompt: str
    answer: str
    tail: str = ""
    kind: str = ""  # what sort of problem it is, where results are also told apart by it

    @property
    def row(self) -> dict[str, str]:
        """As training reads it: prompt and response, or the whole text where the answer stands in its middle."""
        if self.tail:
            return {"text": self.prompt + self.answer + self.tail}
        return {"prompt": self.prompt, "response": self.answer}


@dataclass
class Task(ABC):
    """Problems whose answer is written. Options are fields."""

    anchor: ClassVar[str] = ""  # what a completion writes before its final answer, where it writes anything
    measured: ClassVar[bool] = False  # are there as many blanks as the right answer has tokens, without a tail too?
    continued: ClassVar[bool] = False  # is the prompt text to go on with, even for a model that chats?
    weighed: ClassVar[bool] = False  # is the probability of the right answer worth telling as well?
    runs_code: ClassVar[bool] = False  # does `score` run what a model wrote? Then only where the user allows it

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

    def figures(self, example: Example, completion: str) -> dict[str, float]:
        """All that is measured of a completion, each from 0 to 1; the first is `score`. The names never differ."""
        return {"accuracy": self.score(example, completion)}

    def available(self, split: str = "test") -> int | None:
        """How many problems there are; None: more than anybody asks for."""
        return None

    def rooms(self) -> Sequence[int]:
        """Numbers of blanks to try, of which the best fit is judged; none: there is but one number to have."""
        return ()


@dataclass(frozen=True)
class Question:
    """Options of which one is right: each a continuation of its own context. Common contexts are repeated."""

    contexts: tuple[str, ...]
    options: tuple[str, ...]
    gold: int
    kind: str = ""


def asked(query: str, options: Sequence[str], gold: int) -> Question:
    """A question in words, and its options as answers to it."""
    context = f"{query.rstrip().removesuffix('Answer:').rstrip()}\nAnswer:"
    return Question((context,) * len(options), tuple(f" {option.strip()}" for option in options), gold)


@dataclass
class Choosing(ABC):
    """Problems whose answer is chosen: the option that a model finds likeliest."""

    @abstractmethod
    def questions(self, count: int, split: str = "test", seed: int = 0) -> list[Question]:
        """As `Task.examples`."""

    @abstractmethod
    def available(self, split: str = "test") -> int | None:
        """How many questions there are."""


@dataclass
class Reading(ABC):
    """Texts whose probability is measured."""

    @abstractmethod
    def texts(self, count: int, split: str = "test", seed: int = 0) -> list[str]:
        """As `Task.examples`."""

    @abstractmethod
    def available(self, split: str = "test") -> int | None:
        """How many texts there are."""


@dataclass
class Published:
    """Rows of a published set, from a local file of its format or from the hub.

    data  a file, or a folder with a file of one of the names in `files`; without it the rows come from `hub`

    With seed 0 problems are the file's first, in its order; other seeds draw them.
    """

    files: ClassVar[tuple[str, ...]]
    hub: ClassVar[Hub]
    taught: ClassVar[tuple[tuple[str, ...], Hub] | None] = None  # the same of the rows for training, where there are

    data: str = field(default="", kw_only=True)

    def rows(self, split: str = "test") -> list[Row]:
        """All rows. ValueError when there are none to be had."""
        names, hub = (self.files, self.hub) if split == "test" else self.taught or ((), None)
        if hub is None:
            raise ValueError(f"{type(self).__name__.lower()} has no problems for training")
        return records.read(records.located(self.data, names)) if self.data else records.fetched(hub)

    def available(self, split: str = "test") -> int | None:
        return len(self.rows(split))

    def taken(self, count: int, split: str = "test", seed: int = 0) -> list[Row]:
        """`count` rows of a split."""
        checked(count, split, seed)
        found = self.rows(split)
        if count > len(found):
            name = type(self).__name__.lower()
            raise ValueError(f"{count} {split} problems of {name} were asked for; there are {len(found)}")
        order = np.random.default_rng(seed).permutation(len(found)) if seed else range(len(found))
        return [found[i] for i in order[:count]]


@dataclass
class Written(Published, Task):
    """A published set whose answers are written."""

    @abstractmethod
    def example(self, row: Row) -> Example:
        """A row as a problem."""

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        """As in `Task`."""
        return [self.example(row) for row in self.taken(count, split, seed)]


@dataclass
class Run(Written):
    """A published set whose answers are run, with tests behind them, in the sandbox (docs/sandbox.md).

    seconds  of the processor for one answer
    """

    continued = True
    runs_code = True

    seconds: int = field(default=5, kw_only=True)
    tests: dict[Example, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if self.seconds < 1:
            raise ValueError(f"seconds is {self.seconds}; expected at least one of the processor for an answer")

    @abstractmethod
    def program(self, example: Example, completion: str) -> str:
        """What is run before the tests."""

    def score(self, example: Example, completion: str) -> float:
        return float(self.tried(example, completion).passed)

    def tried(self, example: Example, completion: str) -> Result:
        """How the program with its tests ended."""
        return tried(self.program(example, completion) + self.tests[example], self.seconds)


@dataclass
class Chosen(Published, Choosing):
    """A published set whose answers are chosen."""

    @abstractmethod
    def question(self, row: Row) -> Question:
        """A row as a question."""

    def questions(self, count: int, split: str = "test", seed: int = 0) -> list[Question]:
        """As in `Choosing`."""
        return [self.question(row) for row in self.taken(count, split, seed)]


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

    def available(self, split: str = "test") -> int | None:
        return len(self.pool(split, np.random.default_rng([0, SPLITS.index(split)])))


def to_be_written(found: object, name: str) -> Task:
    """A task whose answers are decoded, and judged without running them. ValueError for any other."""
    if not isinstance(found, Task):
        raise ValueError(f"the answers of {name} are not written but weighed: unveil eval measures it")
    if found.runs_code:
        raise ValueError(f"{name} runs code that a model wrote: unveil eval does so, with --allow-code")
    return found


def held_out(content: str, away: int = AWAY) -> bool:
    """Is this content for tests, as one of `away` is? A blake2b hash of it decides, so that every process and every
    seed agrees."""
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest()) % away == 0


def checked(count: int, split: str, seed: int) -> None:
    """ValueError for what `examples` cannot be asked."""
    if split not in SPLITS:
        raise ValueError(f"no split called {split!r}; there are: {', '.join(SPLITS)}")
    if count < 1 or seed < 0:
        raise ValueError(f"expected a count of at least 1 and a seed of at least 0, got {count} and {seed}")
