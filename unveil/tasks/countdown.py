"""Countdown: reach a target from three numbers, each used once, by two steps of arithmetic."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from . import Drawn, Example

STEP = re.compile(r"([0-9]{1,6})([+*-])([0-9]{1,6})=([0-9]{1,12})")
SIGNS = "+-*"


@dataclass
class Countdown(Drawn):
    """The prompt gives the numbers in order of size and the target; a completion writes two steps, a line each.

    The second step uses the result of the first. No result is below 0. Of several ways, `answer` is the first in the
    order sum, difference, product and of the numbers; all of them are right.

    largest, limit  of the numbers and of the target
    """

    largest: int = 12
    limit: int = 99
    length: int = field(default=20, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.largest <= 20 or not 10 <= self.limit <= 999:
            raise ValueError(
                f"expected largest from 2 to 20 and limit from 10 to 999, got {self.largest} and {self.limit}"
            )

    def draw(self, numbers: np.random.Generator) -> Example:
        while True:
            given = sorted(int(n) for n in numbers.integers(1, self.largest + 1, 3))
            ways = solved(given, self.limit)
            if ways:
                target = sorted(ways)[numbers.integers(len(ways))]
                return Example(f"countdown\n{' '.join(map(str, given))} > {target}\n", ways[target])

    def score(self, example: Example, completion: str) -> float:
        *have, target = (int(n) for n in re.findall("[0-9]+", example.prompt))
        lines = completion.strip().split("\n")
        if len(lines) != 2:
            return 0.0
        for line in lines:
            step = STEP.fullmatch(line)
            if step is None:
                return 0.0
            one, sign, other, result = int(step[1]), step[2], int(step[3]), int(step[4])
            for number in (one, other):
                if number not in have:
                    return 0.0
                have.remove(number)
            if value(one, sign, other) != result:
                return 0.0
            have.append(result)
        return float(have == [target])


def value(one: int, sign: str, other: int) -> int:
    return one + other if sign == "+" else one - other if sign == "-" else one * other


def solved(given: list[int], limit: int) -> dict[int, str]:
    """Each target from 1 to `limit` that three numbers reach, with the first way to it.

    The larger number is written first, except that the first step's result stays in front where the sign allows.
    """
    found: dict[int, str] = {}
    for first in SIGNS:
        for second in SIGNS:
            for kept in range(3):
                low, high = (n for i, n in enumerate(given) if i != kept)
                between = value(high, first, low)
                one, other = between, given[kept]
                if second == "-" and one < other:
                    one, other = other, one
                target = value(one, second, other)
                if 1 <= target <= limit:
                    steps = f"{high}{first}{low}={between}\n{one}{second}{other}={target}"
                    found.setdefault(target, steps)
    return found
