"""Sudoku of 4 x 4 cells: fill rows, columns and quarters with 1 to 4, each once."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from itertools import combinations, permutations
from pathlib import Path

import numpy as np

from . import Drawn, Example, checked

SIDE = 4
CELLS = SIDE * SIDE
PLACES = 1 << np.arange(CELLS)


@dataclass
class Sudoku(Drawn):
    """Puzzles that are made here have one solution, those of a file may have several; any valid grid with the clues is
    right.

    least, most  how many clues a puzzle has; of fewer than `least` none is made, and where so few do not decide the
                 solution it gets more than drawn
    data         a CSV file of puzzles to test on, with the columns Puzzle and Solution, each of 16 digits, 0 for blank;
                 training problems are then none of these
    """

    least: int = 6
    most: int = 12
    data: str = ""
    length: int = field(default=20, kw_only=True)
    grids: np.ndarray = field(init=False, repr=False, compare=False)  # (288, 16): all that are valid
    given: list[Example] = field(init=False, repr=False, compare=False)  # the puzzles of `data`
    aside: frozenset[str] = field(init=False, repr=False, compare=False)  # their prompts

    def __post_init__(self):
        super().__post_init__()
        if not 4 <= self.least <= self.most < CELLS:
            raise ValueError(f"expected 4 <= least <= most <= 15 clues, got least={self.least} and most={self.most}")
        self.grids = solutions()
        self.given = read(self.data, self.grids) if self.data else []
        self.aside = frozenset(example.prompt for example in self.given)

    def draw(self, numbers: np.random.Generator) -> Example:
        grid = self.grids[numbers.integers(len(self.grids))]
        wanted = int(numbers.integers(self.least, self.most + 1))
        apart = (self.grids != grid) @ PLACES  # (288,) where each grid is another, a bit a cell
        kept = int(PLACES.sum())
        for cell in numbers.permutation(CELLS):
            if kept.bit_count() == wanted:
                break
            if np.count_nonzero(apart & (kept - PLACES[cell]) == 0) == 1:  # still only this one fits
                kept -= int(PLACES[cell])
        return Example(asked(np.where(kept & PLACES, grid, 0)), written(grid))

    def fitting(self, clues: np.ndarray) -> np.ndarray:
        """(N, 16) the valid grids that agree with (16,) clues."""
        return self.grids[((self.grids == clues) | (clues == 0)).all(1)]

    def keeps(self, example: Example, split: str) -> bool:
        return super().keeps(example, split) and not (split == "train" and example.prompt in self.aside)

    def available(self, split: str = "test") -> int | None:
        return len(self.given) if self.given and split == "test" else None

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        if not self.given or split == "train":
            return super().examples(count, split, seed)
        checked(count, split, seed)
        if count > len(self.given):
            raise ValueError(f"{count} puzzles were asked for; {self.data} has {len(self.given)}")
        order = np.random.default_rng(seed).permutation(len(self.given))
        return [self.given[i] for i in order[:count]]

    def score(self, example: Example, completion: str) -> float:
        rows = completion.strip().split("\n")
        if len(rows) != SIDE or not all(re.fullmatch("[1-4]{4}", row) for row in rows):
            return 0.0
        clues = np.array([0 if c == "." else int(c) for c in re.sub("[^.1-4]", "", example.prompt)])
        grid = np.array([int(c) for row in rows for c in row])
        return float(bool((self.fitting(clues) == grid).all(1).any()))


def solutions() -> np.ndarray:
    """(288, 16) every valid grid, row after row."""
    rows = np.array(list(permutations(range(1, SIDE + 1))))
    differ = (rows[:, None] != rows).all(2)  # may one row stand over another?
    chosen = np.indices([len(rows)] * SIDE).reshape(SIDE, -1)
    for one, other in combinations(range(SIDE), 2):
        chosen = chosen[:, differ[chosen[one], chosen[other]]]
    found = rows[chosen.T]
    quarters = found.reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, SIDE, SIDE)
    return found[(np.sort(quarters, axis=2) == np.arange(1, SIDE + 1)).all((1, 2))].reshape(-1, CELLS)


def written(cells: np.ndarray) -> str:
    """(16,) cells as four lines, blanks as dots."""
    return "\n".join("".join(str(c) if c else "." for c in row) for row in cells.reshape(SIDE, SIDE))


def asked(clues: np.ndarray) -> str:
    return f"sudoku\n{written(clues)}\n=\n"


def read(path: str, grids: np.ndarray) -> list[Example]:
    """The puzzles of a CSV file. ValueError for a file of another form."""
    if not Path(path).is_file():
        raise ValueError(f"no such file: {path}")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for i, row in enumerate(rows, 2):
        puzzle, solution = row.get("Puzzle") or "", row.get("Solution") or ""
        if not re.fullmatch("[0-4]{16}", puzzle) or not re.fullmatch("[1-4]{16}", solution):
            raise ValueError(f"{path}, line {i}, should give Puzzle and Solution as 16 digits each, 0 for a blank")
        clues, grid = (np.array([int(c) for c in cells]) for cells in (puzzle, solution))
        if not (grids == grid).all(1).any() or not ((clues == 0) | (clues == grid)).all():
            raise ValueError(f"{path}, line {i}: the solution is no valid grid with these clues")
        found.append(Example(asked(clues), written(grid)))
    if not found:
        raise ValueError(f"{path} is empty: it holds no puzzles")
    return found
