"""HumanEval: the body of a function from its signature and docstring, judged by running the tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import sandbox
from ..programs import completed
from ..records import Hub, Row
from ..sandbox import Limits
from . import Example, Written


@dataclass
class Humaneval(Written):
    """Chen et al. 2021, 2107.03374. Rows have `prompt`, `canonical_solution`, `test` (a function `check`) and
    `entry_point`. What `score` runs, it runs in the sandbox (docs/sandbox.md).

    seconds  of processor time for the tests of one completion
    """

    files = ("humaneval.jsonl", "HumanEval.jsonl", "human-eval*.jsonl")
    hub = Hub("openai/openai_humaneval", None, "test")
    continued = True
    runs_code = True

    seconds: int = 5
    length: int = field(default=256, kw_only=True)
    tests: dict[Example, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def example(self, row: Row) -> Example:
        found = Example(row.text("prompt"), row.text("canonical_solution"))
        self.tests[found] = f"\n{row.text('test')}\ncheck({row.text('entry_point')})\n"
        return found

    def score(self, example: Example, completion: str) -> float:
        return float(self.tried(example, completion).passed)

    def tried(self, example: Example, completion: str) -> sandbox.Result:
        """How the program with its tests ended."""
        return sandbox.run(completed(example.prompt, completion) + self.tests[example], Limits(cpu=self.seconds))
