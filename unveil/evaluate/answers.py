"""Exact match: prompts answered by decoding, beside the answers that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..codecs.spelling import Spelling
from ..codecs.text import Text
from ..data import Conversations
from ..denoiser import Denoiser
from ..tasks import Example, Task
from .intervals import Interval, wilson
from .problems import Problem, Setting, Subject

LONGER = 8  # blanks beyond the right answer, so that stopping has to be learnt too


@dataclass
class Verbatim(Task):
    """The answer of a row, word for word, but for space at its ends."""

    def examples(self, count: int, split: str = "test", seed: int = 0) -> list[Example]:
        raise ValueError("rows bring their own examples")

    def score(self, example: Example, completion: str) -> float:
        return float(completion.strip() == example.answer.strip())


@dataclass
class Exam:
    """Questions with right answers, for a model under training to be asked again and again."""

    text: Text
    task: Task
    problems: list[Problem]

    @classmethod
    def of_task(cls, model: Denoiser, text: Text, task: Task, count: int, seed: int = 0) -> Exam:
        """The test problems of a task."""
        subject = Subject(model, text, task)
        return cls(text, task, [subject.problem(example) for example in task.examples(count, "test", seed)])

    @classmethod
    def of_rows(cls, model: Denoiser, text: Text, rows: Conversations, length: int, count: int) -> Exam:
        """Rows that a model was not trained on: each prompt, with some more blanks than its answer has tokens."""
        fitting = rows.fitting(length)
        problems, spelling = [], Spelling(text)
        for i in range(min(count, len(fitting))):
            _, prompt, response = rows.conversations[fitting[i * len(fitting) // min(count, len(fitting))]]
            blanks = min(len(response) + LONGER, length - len(prompt))
            answer = spelling.behind([] if text.template else prompt, [t for t in response if t != text.eos_id])
            example = Example(text.decode(prompt), answer)
            problems.append(Problem(example, [*prompt, *[model.mask_id] * blanks], len(prompt), blanks))
        return cls(text, Verbatim(), problems)

    def sit(self, model: Denoiser, decoder: str = "threshold", rows: int = 32) -> Interval:
        """The share of right answers, with its 95 % interval; `rows` problems are decoded side by side."""
        subject = Subject(model, self.text, self.task)
        look = model.attention
        setting = Setting(decoder, look.cache, block=look.block)
        scores: list[float] = []
        for first in range(0, len(self.problems), rows):
            some = self.problems[first : first + rows]
            seeds: Sequence[int] = range(first, first + len(some))
            scores += [outcome.score for outcome in subject.solve(some, setting, seeds)]
        return wilson(np.array(scores) == 1, np.arange(len(scores)))
