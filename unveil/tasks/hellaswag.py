"""HellaSwag: which of four endings goes on with a description of everyday life."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..records import Hub, Row
from . import Chosen, Question


@dataclass
class Hellaswag(Chosen):
    """Zellers et al. 2019, 1905.07830. Rows have `ctx`, `endings` and `label`. An `activity_label` stands in front
    where there is one, as in the published prompt, and marks of the source such as [title] are taken out."""

    files = ("hellaswag.jsonl", "hellaswag_*.jsonl")
    hub = Hub("Rowan/hellaswag", None, "validation")

    def question(self, row: Row) -> Question:
        endings = row.texts("endings")
        context = row.text("ctx")
        if "activity_label" in row:
            context = f"{row.text('activity_label')}: {context}"
        gold = row.index("label", len(endings))
        return Question((clean(context),) * len(endings), tuple(f" {clean(each)}" for each in endings), gold)


def clean(text: str) -> str:
    """Without the marks that its sources have."""
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).replace("  ", " ").strip()
