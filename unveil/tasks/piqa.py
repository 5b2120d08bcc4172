"""PIQA: which of two ways of doing something in the physical world is the sensible one."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Hub, Row
from . import Chosen, Question, asked


@dataclass
class Piqa(Chosen):
    """Bisk et al. 2019, 1911.11641. Rows have `query`, `choices` and `gold`, or `goal`, `sol1`, `sol2` and `label`."""

    files = ("piqa.jsonl", "piqa_*.jsonl")
    hub = Hub("baber/piqa", None, "validation")

    def question(self, row: Row) -> Question:
        if "goal" in row:
            options = [row.text("sol1"), row.text("sol2")]
            return asked(f"Question: {row.text('goal')}", options, row.index("label", 2))
        options = row.texts("choices")
        return asked(row.text("query"), options, row.index("gold", len(options)))
