"""Chain arithmetic: sums and differences one after the other, each step on a line, and the answer on the last."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .. import records
from . import Drawn, Example, checked

ANSWER = re.compile("answer: ([0-9]{1,9})")


@dataclass
class Arithmetic(Drawn):
    """Running results are 0 to 99. Only the answer's line decides whether a completion is right.

    data         a file of problems to test on instead, with the fields `context` and `continuation`; what is written up
                 to the first line's end has to be the continuation
    least, most  operations in a chain
    largest      of its numbers, which begin at 1
    """

    anchor: ClassVar[str] = "answer:"

    least: int = 3
    most: int = 4
    largest: int = 20
    data: str = ""
    length: int = field(default=48, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.least <= self.most:
            raise ValueError(f"expected 1 <= least <= most operations, got least={self.least} and most={self.most}")
        if not 1 <= self.largest <= 50:
            raise ValueError(f"expected largest from 1 to 50, got {self.largest}")

    def draw(self, numbers: np.random.Generator) -> Example:
        count = int(numbers.integers(self.least, self.most + 1))
        now = int(numbers.integers(1, self.largest + 1))
        chain, lines = str(now), []
        while len(lines) < count:
            number, adds = int(numbers.integers(1, self.largest + 1)), bool(numbers.integers(2))
            then = now + number if adds else now - number
            if not 0 <= then <= 99:
                continue
            step = f"{'+' if adds else '-'}{number}"
            chain += step
            lines.append(f"{now}{step}={then}")
            now = then
        return Example(f"arithmetic\n{chain}=\n", "\n".join([*lines, f"answer: {now}"]))

    def available(self, split: str = "test") -> int | None:
        return len(records.read(records.located(self.data, ("simple_arithmetic*.jsonl",)))) if self.data else None

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        if not self.data or split == "train":
            return super().examples(count, split, seed)
        checked(count, split, seed)
        rows = records.read(records.located(self.data, ("simple_arithmetic*.jsonl",)))
        if count > len(rows):
            raise ValueError(f"{count} problems were asked for; {self.data} has {len(rows)}")
        order = np.random.default_rng(seed).permutation(len(rows)) if seed else range(len(rows))
        return [Example(rows[i].text("context"), rows[i].text("continuation")) for i in order[:count]]

    def score(self, example: Example, completion: str) -> float:
        if self.data:
            return float(completion.strip().split("\n")[0].strip() == example.answer.strip())
        last = ANSWER.fullmatch(completion.strip().split("\n")[-1])
        return float(last is not None and last[1] == example.answer.rpartition(" ")[2])

    def steps_right(self, example: Example, completion: str) -> float:
        """The share of the answer's lines, its last included, that the completion has in the same place."""
        right, ours = example.answer.split("\n"), completion.strip().split("\n")
        return sum(a == b for a, b in zip(right, ours, strict=False)) / len(right)
