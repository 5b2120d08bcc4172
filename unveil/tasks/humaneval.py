"""HumanEval: the body of a function from its signature and docstring, judged by running the tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..programs import completed
from ..records import Hub, Row
from . import Example, Run


@dataclass
class Humaneval(Run):
    """Chen et al. 2021, 2107.03374. Rows have `prompt`, `canonical_solution`, `test` (a function `check`) and
    `entry_point`."""

    files = ("humaneval.jsonl", "HumanEval.jsonl", "human-eval*.jsonl")
    hub = Hub("openai/openai_humaneval", None, "test")

    length: int = field(default=256, kw_only=True)

    def example(self, row: Row) -> Example:
        found = Example(row.text("prompt"), row.text("canonical_solution"))
        self.tests[found] = f"\n{row.text('test')}\ncheck({row.text('entry_point')})\n"
        return found

    def program(self, example: Example, completion: str) -> str:
        return completed(example.prompt, completion)
