"""LAMBADA: the last word of a passage, which only its whole context gives away."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..records import Hub, Row
from . import Example, Written


@dataclass
class Lambada(Written):
    """Paperno et al. 2016, 1606.06031, in OpenAI's form. Rows have `context` and `continuation`, or `text` alone.

    There are as many blanks as the word has tokens, and it counts when it is exactly the word.
    """

    files = ("lambada_openai.jsonl", "lambada*.jsonl")
    hub = Hub("EleutherAI/lambada_openai", "default", "test")
    measured = continued = weighed = True

    length: int = field(default=8, kw_only=True)

    def example(self, row: Row) -> Example:
        if "context" in row or "text" not in row:
            context, word = row.text("context").rstrip(), row.text("continuation").strip()
        else:
            context, _, word = row.text("text").rstrip().rpartition(" ")
        if not context or not word:
            raise ValueError(f"{row.place}: expected a passage and its last word")
        return Example(context, f" {word}")

    def score(self, example: Example, completion: str) -> float:
        return float(completion.strip() == example.answer.strip())
