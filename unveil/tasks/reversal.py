"""Reversal: pairs that were only ever seen one way round, asked in both directions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import AWAY, SPLITS, Example, Task, checked, held_out

ONSETS, VOWELS = "bdfgklmnprstvz", "aeiou"
DIRECTIONS = ("both", "forward", "reverse")


@dataclass
class Reversal(Task):
    """Pairs of made-up names. Training shows every pair as "left > right", a text of its own, and for most of them asks
    both questions: what follows the left, and what precedes the right. Tests ask the pairs whose questions were never
    asked, and which were seen one way round alone.

    A small form of LLaDA's reversal task (2502.09992, section 3.3); it is about the share of reverse to forward. A name
    has a space before it wherever it stands, so that every tokenizer reads it alike.

    pairs      of names, always the same for the same `world`
    syllables  of a name
    direction  both, forward or reverse: what tests ask
    world      which names there are
    away       one pair of so many is for tests
    repeats    how often a round of training shows a pair, for once that it asks each question
    """

    pairs: int = 1000
    syllables: int = 3
    direction: str = "both"
    world: int = 0
    away: int = AWAY
    repeats: int = 1
    length: int = field(default=12, kw_only=True)
    known: list[tuple[str, str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if self.direction not in DIRECTIONS:
            raise ValueError(f"no direction called {self.direction!r}; there are: {', '.join(DIRECTIONS)}")
        most = (len(ONSETS) * len(VOWELS)) ** self.syllables // 4 if self.syllables in range(1, 7) else 0
        if not 8 <= self.pairs <= most:
            raise ValueError(f"expected 1 to 6 syllables and 8 to {most} pairs of such names, got {self.pairs}")
        if self.away < 2 or self.repeats < 1:
            raise ValueError(f"away is at least 2 and repeats at least 1, got {self.away} and {self.repeats}")
        self.known = named(self.pairs, self.syllables, self.world)

    def questions(self, pair: tuple[str, str]) -> list[Example]:
        left, right = pair
        both = (
            Example(f"after {left}:", f" {right}", kind="forward"),
            Example(f"before {right}:", f" {left}", kind="reverse"),
        )
        return [each for each in both if self.direction in ("both", each.kind)]

    def pool(self, split: str) -> list[Example]:
        """Training: all pairs as they stand, and both questions of those that are not for tests."""
        tests = [pair for pair in self.known if held_out(" > ".join(pair), self.away)]
        if split == "test":
            return [each for pair in tests for each in self.questions(pair)]
        aside = set(tests)
        shown = [Example("", f"pair {left} > {right}", kind="shown") for left, right in self.known]
        return shown * self.repeats + [
            each for pair in self.known if pair not in aside for each in self.questions(pair)
        ]

    def available(self, split: str = "test") -> int | None:
        return len(self.pool(split))

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        """As in `Task`; training problems come again when more are asked for than there are. Both questions of a test
        pair come together, so that either is asked as often whatever the count, and forward once more where it is odd.
        """
        checked(count, split, seed)
        found = self.pool(split)
        if split == "test" and count > len(found):
            raise ValueError(f"{count} test problems of reversal were asked for; there are {len(found)}")
        numbers = np.random.default_rng([seed, SPLITS.index(split)])
        each = 2 if split == "test" and self.direction == "both" else 1  # that stay together
        rounds = [numbers.permutation(len(found) // each) for _ in range(-(-count // len(found)))]
        order = (np.concatenate(rounds)[:, None] * each + np.arange(each)).ravel()
        return [found[i] for i in order[:count]]

    def score(self, example: Example, completion: str) -> float:
        """Is the name in what was written? As the published task judges."""
        return float(example.answer.strip() in completion.split("\n")[0].split())


def named(count: int, syllables: int, world: int) -> list[tuple[str, str]]:
    """So many pairs of names, all different."""
    numbers = np.random.default_rng([world, syllables])
    found: dict[str, None] = {}
    while len(found) < 2 * count:
        draws = numbers.integers(len(ONSETS) * len(VOWELS), size=syllables)
        name = "".join(ONSETS[i // len(VOWELS)] + VOWELS[i % len(VOWELS)] for i in draws)
        found[name] = None
    names = list(found)
    return list(zip(names[:count], names[count:], strict=True))
