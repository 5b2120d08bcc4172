"""GSM8K: word problems of grade school, answered step by step with the number behind "####"."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..records import Hub, Row
from . import Example, Written

ANSWER = re.compile(r"#### *(-?[0-9][0-9,]*(?:\.[0-9]+)?|-?\.[0-9]+)")
NUMBER = re.compile(r"-?\$?[0-9][0-9,]*(?:\.[0-9]+)?")
NEXT = "\n\nQuestion:"  # where a model goes on with a problem of its own


@dataclass
class Gsm8k(Written):
    """Cobbe et al. 2021, 2110.14168. Rows have `question` and `answer`, a chain that ends with "#### number".

    shots  solved problems before each question: the first of the training file
    """

    files = ("gsm8k_test.jsonl", "gsm8k.jsonl")
    hub = Hub("openai/gsm8k", "main", "test")
    taught = ("gsm8k_train.jsonl",), Hub("openai/gsm8k", "main", "train")
    anchor = "#### "

    shots: int = 0
    length: int = field(default=256, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.shots <= 64:
            raise ValueError(f"shots is {self.shots}; expected 0 to 64 solved problems before a question")

    def example(self, row: Row) -> Example:
        question, answer = row.text("question"), row.text("answer")
        if not ANSWER.search(answer):
            raise ValueError(f"{row.place}: the field 'answer' does not end with '#### ' and a number")
        return Example(f"Question: {question.strip()}\nAnswer:", f" {answer.strip()}")

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        found = super().examples(count, split, seed)
        if not self.shots:
            return found
        solved = [self.example(row) for row in self.taken(self.shots, "train")]
        front = "".join(f"{each.prompt}{each.answer}\n\n" for each in solved)
        return [Example(front + each.prompt, each.answer) for each in found]

    def score(self, example: Example, completion: str) -> float:
        return self.figures(example, completion)["accuracy"]

    def figures(self, example: Example, completion: str) -> dict[str, float]:
        """accuracy: the number behind "####", or the last there is; strict: only behind "####"."""
        own, right = completion.split(NEXT)[0], value(ANSWER.findall(example.answer)[-1])
        marked, numbers = ANSWER.search(own), NUMBER.findall(own)
        strict = marked is not None and value(marked[1]) == right
        loose = strict if marked else bool(numbers) and value(numbers[-1]) == right
        return {"accuracy": float(loose), "strict": float(strict)}


def value(number: str) -> float:
    """What a number with commas or a dollar sign is."""
    return float(number.replace(",", "").replace("$", ""))
