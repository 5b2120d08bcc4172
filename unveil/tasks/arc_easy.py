"""ARC-easy: questions of school science, the easy part."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Hub, Row
from . import Chosen, Question, asked


@dataclass
class ArcEasy(Chosen):
    """Clark et al. 2018, 1803.05457. Rows have `query`, `choices` and `gold`, or `question`, `choices` (an object of
    `text` and `label`) and `answerKey`."""

    files = ("arc_easy.jsonl", "arc_easy_*.jsonl")
    hub = Hub("allenai/ai2_arc", "ARC-Easy", "test")

    def question(self, row: Row) -> Question:
        if "answerKey" not in row:
            options = row.texts("choices")
            return asked(row.text("query"), options, row.index("gold", len(options)))
        inner = Row(row.field("choices", dict), row.place)
        options, labels, key = inner.texts("text"), inner.texts("label"), row.text("answerKey")
        if key not in labels or len(labels) != len(options):
            raise ValueError(f"{row.place}: answerKey is {key!r}; expected one of {', '.join(labels)}")
        return asked(f"Question: {row.text('question')}", options, labels.index(key))
