"""MBPP: a short function from one sentence and three assertions, judged by running these."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .. import records, sandbox
from ..programs import before, fenced
from ..records import Hub, Row
from ..sandbox import Limits
from . import Example, Written

SET = "google-research-datasets/mbpp"
TESTED, LEARNT, SHOWN = range(11, 511), range(601, 975), (2, 3, 4)  # task_ids by the authors' division
EXPERT = "You are an expert Python programmer, and here is your task:"
ASKED = EXPERT + " {} Your code should pass these tests:\n\n{}\n[BEGIN]\n"
DONE = "[DONE]"


@dataclass
class Mbpp(Written):
    """Austin et al. 2021, 2108.07732, with the paper's prompt. Rows have `task_id`, `text`, `code`, `test_list` and
    `test_setup_code`. Of a file with the whole set, problems 11 to 510 are for tests and 601 to 974 for training.
    What `score` runs, it runs in the sandbox (docs/sandbox.md).

    shots    solved problems before each: numbers 2, 3 and 4, as in the paper; 0 to 3
    seconds  of processor time for the tests of one completion
    """

    files = ("mbpp.jsonl",)
    hub = Hub(SET, "full", "test")
    taught = ("mbpp.jsonl",), Hub(SET, "full", "train")
    continued = True
    runs_code = True

    shots: int = 3
    seconds: int = 5
    length: int = field(default=256, kw_only=True)
    tests: dict[Example, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.shots <= len(SHOWN):
            raise ValueError(f"shots is {self.shots}; expected 0 to {len(SHOWN)} solved problems before a question")

    def rows(self, split: str = "test") -> list[Row]:
        """Those of the split."""
        numbers = TESTED if split == "test" else LEARNT
        found = [row for row in super().rows(split) if row.field("task_id", int) in numbers]
        if not found:
            raise ValueError(f"{self.data or self.hub.id} has no problem numbered {numbers[0]} to {numbers[-1]}")
        return found

    def shown(self) -> str:
        """The solved problems."""
        if not self.shots:
            return ""
        hub = Hub(SET, "full", "prompt")
        rows = records.read(records.located(self.data, self.files)) if self.data else records.fetched(hub)
        known = {row.field("task_id", int): row for row in rows}
        if missing := [number for number in SHOWN[: self.shots] if number not in known]:
            raise ValueError(
                f"{self.data or SET} has no problem with the task_id {missing[0]}, which the prompt shows solved: give "
                "the whole set, or shots=0"
            )
        parts = [known[number] for number in SHOWN[: self.shots]]
        return "".join(f"{asked(row)}{plain(row.text('code'))}\n{DONE}\n\n" for row in parts)

    def example(self, row: Row) -> Example:
        found = Example(asked(row), f"{plain(row.text('code'))}\n{DONE}")
        setup = row.text("test_setup_code") if "test_setup_code" in row else ""
        self.tests[found] = "\n".join(["", plain(setup), *map(plain, row.texts("test_list")), ""])
        return found

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        front, found = self.shown(), []
        for each in super().examples(count, split, seed):
            found.append(replace(each, prompt=front + each.prompt))
            self.tests[found[-1]] = self.tests[each]
        return found

    def score(self, example: Example, completion: str) -> float:
        return float(self.tried(example, completion).passed)

    def tried(self, example: Example, completion: str) -> sandbox.Result:
        """How the program with its tests ended."""
        own = before(completion, (DONE, "\n[BEGIN]")).removeprefix("[BEGIN]")
        code = fenced(own)
        return sandbox.run((own if code is None else code) + self.tests[example], Limits(cpu=self.seconds))


def asked(row: Row) -> str:
    """A problem as the paper puts it."""
    return ASKED.format(row.text("text").strip(), "\n".join(map(plain, row.texts("test_list"))))


def plain(code: str) -> str:
    """With the ends of lines that Python writes."""
    return code.replace("\r\n", "\n").rstrip()
