"""Story infilling: one or several sentences in the middle, with two before and two behind."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..records import Hub, Row
from . import Example, Written

SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"'\u201d\u2019)]*\s*")
AROUND = 2  # sentences that stand before and behind


@dataclass
class StoryInfill(Written):
    """ROCStories (Mostafazadeh et al. 2016, 1604.01696) with their columns sentence1 to sentence5, .csv or .jsonl; or
    any stories, of which the first sentences are taken: .txt (also .xz), .json or rows with `text`.

    There are as many blanks as the answer has tokens. The score is ROUGE-L, as in DiffuLLaMA (2410.17891).

    asked  sentences that are blank, one as published; the columns leave no choice
    """

    files = ("rocstories*.csv", "rocstories*.jsonl", "*stories*.json", "*stories*.txt", "*stories*.txt.xz")
    hub = Hub("mintujupally/ROCStories", None, "test")

    asked: int = field(default=1, kw_only=True)
    length: int = field(default=32, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.asked < 1:
            raise ValueError(f"asked is {self.asked}; expected at least one sentence to be blank")

    @property
    def sentences(self) -> int:
        return self.asked + 2 * AROUND

    def rows(self, split: str = "test") -> list[Row]:
        """Those with enough sentences. A row without a known field is refused."""
        found = super().rows(split)
        if self.asked > 1 and any("sentence1" in row for row in found):
            raise ValueError(f"asked is {self.asked}, and stories of five sentences leave one to be blank")
        least = self.sentences
        found = [row for row in found if "sentence1" in row or len(sentences(row.text("text"))) >= least]
        if not found:
            raise ValueError(f"{self.data or self.hub.id} has no story of {least} sentences")
        return found

    def example(self, row: Row) -> Example:
        if "sentence1" in row:
            parts = [row.text(f"sentence{i}").strip() for i in range(1, self.sentences + 1)]
        else:
            parts = sentences(row.text("text"))[: self.sentences]
        before, blank, behind = parts[:AROUND], parts[AROUND:-AROUND], parts[-AROUND:]
        return Example(" ".join(before), f" {' '.join(blank)}", f" {' '.join(behind)}")

    def score(self, example: Example, completion: str) -> float:
        return self.figures(example, completion)["rouge_l"]

    def figures(self, example: Example, completion: str) -> dict[str, float]:
        """F-measures of rouge-score without stemming, and whether it is the sentence itself."""
        found = scorer().score(example.answer.strip(), completion.strip())
        named = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}
        exact = float(completion.strip() == example.answer.strip())
        return {**{name: float(found[key].fmeasure) for name, key in named.items()}, "exact": exact}


def sentences(text: str) -> list[str]:
    """The sentences of a text, on one line each."""
    return [" ".join(found.split()) for found in SENTENCE.findall(text) if found.strip()]


def scorer():
    """ROUGE as everybody computes it. ValueError without the library."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise ValueError(
            "story_infill is scored by rouge-score, which is not installed: pip install 'unveil[eval]'"
        ) from error
    return RougeScorer(["rouge1", "rouge2", "rougeL"])
