"""WinoGrande: whom or what a sentence is about, told by how likely its rest is after each name."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Hub, Row
from . import Chosen, Question


@dataclass
class Winogrande(Chosen):
    """Sakaguchi et al. 2019, 1907.10641, with partial evaluation: the words behind the name are weighed. Rows have
    `context_options`, `continuation` and `gold`, or `sentence` with a blank _, `option1`, `option2` and `answer`."""

    files = ("winogrande.jsonl", "winogrande_*.jsonl")
    hub = Hub("allenai/winogrande", "winogrande_xl", "validation")

    def question(self, row: Row) -> Question:
        if "sentence" in row:
            before, blank, behind = row.text("sentence").partition("_")
            if not blank:
                raise ValueError(f"{row.place}: the field 'sentence' has no blank _")
            contexts = [before + row.text(name) for name in ("option1", "option2")]
            gold = row.index("answer", 2, first=1)
        else:
            contexts, behind = row.texts("context_options"), row.text("continuation")
            gold = row.index("gold", len(contexts))
        return Question(tuple(contexts), (f" {behind.strip()}",) * len(contexts), gold)
