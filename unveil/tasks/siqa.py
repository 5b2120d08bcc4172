"""Social IQa: what people feel, want or do next."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..records import Hub, Row
from . import Chosen, Question, asked

LETTERED = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)
LISTED = re.compile(r"\nChoices:\n.*", re.DOTALL)


@dataclass
class Siqa(Chosen):
    """Sap et al. 2019, 1904.09728. Rows have `query` (which lists the options by letter), `choices` (the letters) and
    `gold`; or `context`, `question`, `answerA` to `answerC` and `label`, counted from 1.

    letters  list the options in the prompt and weigh their letters; otherwise the options themselves are weighed, as
             models that are no good at letters need it
    """

    files = ("siqa.jsonl", "siqa_*.jsonl", "social_i_qa*.jsonl")
    hub = Hub("allenai/social_i_qa", None, "validation")

    letters: bool = False

    def question(self, row: Row) -> Question:
        if "answerA" in row:
            options = [row.text(f"answer{letter}") for letter in "ABC"]
            query = f"Context: {row.text('context')}\nQuestion: {row.text('question')}"
            gold = row.index("label", 3, first=1)
        else:
            query, names = row.text("query"), row.texts("choices")
            lettered = dict(LETTERED.findall(query))
            if missing := [name for name in names if name not in lettered]:
                raise ValueError(f"{row.place}: the field 'query' lists no option {missing[0]!r}")
            options = [lettered[name] for name in names]
            query, gold = LISTED.sub("", query), row.index("gold", len(names))
        if not self.letters:
            return asked(query, options, gold)
        names = "ABCDEFGH"[: len(options)]
        listed = "\n".join(f"{name}. {option}" for name, option in zip(names, options, strict=True))
        return asked(f"{query}\nChoices:\n{listed}", names, gold)
