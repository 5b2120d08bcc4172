"""HumanEval infilling: one line of a function's body, with all the others around it, judged by running the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import sandbox
from ..records import Hub, Row
from ..sandbox import Limits
from . import Example, Written


@dataclass
class HumanevalInfill(Written):
    """Single-line infilling of Bavarian et al. 2022, 2207.14255. Rows have `prompt`, `suffix`, `canonical_solution`,
    `test` and `entry_point`. There are as many blanks as the line has tokens (the oracle length of DiffuLLaMA,
    2410.17891), unless `lengths` has them tried.

    lengths  numbers of blanks to try instead, of which the one whose text the model finds likeliest is kept
    seconds  of processor time for the tests of one completion
    """

    files = ("humaneval_infilling_single_line.jsonl", "HumanEval-SingleLineInfilling.jsonl")
    hub = Hub("loubnabnl/humaneval_infilling", "HumanEval-SingleLineInfilling", "test")
    continued = True
    runs_code = True

    lengths: tuple[int, ...] = ()
    seconds: int = 5
    length: int = field(default=64, kw_only=True)
    tests: dict[Example, str] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def score(self, example: Example, completion: str) -> float:
        return self.figures(example, completion)["pass"]

    def figures(self, example: Example, completion: str) -> dict[str, float]:
        """pass: the tests pass; exact: it is the line itself, spaces at its end aside."""
        exact = completion.rstrip() == example.answer.rstrip()
        return {"pass": float(self.tried(example, completion).passed), "exact": float(exact)}

    def tried(self, example: Example, completion: str) -> sandbox.Result:
        """How the program with its tests ended."""
        program = example.prompt + completion + example.tail + self.tests[example]
        return sandbox.run(program, Limits(cpu=self.seconds))
