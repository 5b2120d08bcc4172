"""HumanEval infilling: one line of a function's body, with all the others around it, judged by running the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..records import Hub, Row
from . import Example, Run


@dataclass
class HumanevalInfill(Run):
    """Single-line infilling of Bavarian et al. 2022, 2207.14255. Rows have `prompt`, `suffix`, `canonical_solution`,
    `test` and `entry_point`. There are as many blanks as the line has tokens (the oracle length of DiffuLLaMA,
    2410.17891), unless `lengths` has them tried.

    lengths  numbers of blanks to try instead, of which the one whose text the model finds likeliest is kept
    """

    files = ("humaneval_infilling_single_line.jsonl", "HumanEval-SingleLineInfilling.jsonl")
    hub = Hub("loubnabnl/humaneval_infilling", "HumanEval-SingleLineInfilling", "test")

    lengths: tuple[int, ...] = ()
    length: int = field(default=64, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if any(not isinstance(each, int) or each < 1 for each in self.lengths):
            raise ValueError(f"lengths is {self.lengths}; expected numbers of blanks, at least 1 each")

    def example(self, row: Row) -> Example:
        found = Example(row.text("prompt"), row.text("canonical_solution"), row.text("suffix"))
        self.tests[found] = f"\n{row.text('test')}\ncheck({row.text('entry_point')})\n"
        return found

    def rooms(self) -> Sequence[int]:
        return self.lengths

    def program(self, example: Example, completion: str) -> str:
        return example.prompt + completion + example.tail

    def figures(self, example: Example, completion: str) -> dict[str, float]:
        """pass: the tests pass; exact: it is the line itself, spaces at its end aside."""
        exact = completion.rstrip() == example.answer.rstrip()
        return {"pass": self.score(example, completion), "exact": float(exact)}
