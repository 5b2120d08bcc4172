"""Problems of a task as rows with blanks, decoded and judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..attention import FULL, Attention
from ..canvas import Canvas
from ..codecs.spelling import Spelling
from ..codecs.text import Text
from ..denoiser import Denoiser
from ..sample import Passes, denoise, prepare
from ..tasks import Example, Task
from ..together import together
from .memory import Peak


@dataclass(frozen=True)
class Setting:
    """One way to decode."""

    decoder: str
    cache: str = "recompute"
    guide: str | None = None
    block: int | None = None
    steps: int | None = None  # predictions allowed per block

    @property
    def options(self) -> dict:
        """Those of `sample.denoise`."""
        return {"cache": self.cache, "guide": self.guide, "block": self.block, "steps": self.steps}


@dataclass(frozen=True)
class Problem:
    """An example as token ids: the prompt, blanks for the answer, and what follows it, if anything does."""

    example: Example
    row: list[int]
    first: int  # blank
    blanks: int

    @property
    def answer(self) -> slice:
        return slice(self.first, self.first + self.blanks)


@dataclass(frozen=True)
class Outcome:
    """What decoding one problem gave and took."""

    score: float
    tokens: int  # written, up to and with the end-of-text token
    forwards: int  # model calls that the problem needed by itself
    completion: str = ""
    figures: dict[str, float] = field(default_factory=dict)  # all that the task measures of it


@dataclass
class Subject:
    """A model with its tokenizer, asked the problems of one task."""

    model: Denoiser
    text: Text
    task: Task

    def talks(self, example: Example) -> bool:
        """Is it asked in a chat template?"""
        return bool(self.text.template) and not (example.tail or self.task.continued)

    def problem(self, example: Example, room: int | None = None) -> Problem:
        """As the model was trained to read it: in its chat template where there is one, after its first token.

        With a tail there are as many blanks as the right answer has tokens, otherwise as many as the task gives room;
        a task may also want the former always, and its prompts continued without the template. `room` is a number of
        blanks instead of these.
        """
        text, mask = self.text, self.model.mask_id
        front = [] if text.start_id is None else [text.start_id]
        exact = bool(example.tail) or self.task.measured
        blanks = room or (len(text.encode(example.answer, begins=False)) if exact else self.task.length)
        if self.talks(example):
            prompt = text.chat([{"role": "user", "content": example.prompt}])
        else:
            prompt = front + text.encode(example.prompt)
        behind = text.encode(example.tail, begins=False)
        return Problem(example, [*prompt, *[mask] * blanks, *behind], len(prompt), blanks)

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling(self.text)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def look(self, filling: bool) -> Attention:
        """Leader models look both ways where something follows the blanks, as `sample.fill` has it."""
        return FULL if filling and self.model.attention.kind == "leader" else self.model.attention

    def canvas(self, problem: Problem, seed: int) -> Canvas:
        """One problem alone; `seed` keys its random choices."""
        row = torch.tensor(problem.row, dtype=torch.long, device=self.device)
        look = self.look(bool(problem.example.tail))
        return Canvas.filling([row], self.model.mask_id, torch.tensor([seed]), look)

    def passes(self, canvas: Canvas, setting: Setting) -> Passes:
        return prepare(self.model, canvas, setting.decoder, **setting.options)

    def refusal(self, problem: Problem, setting: Setting) -> str | None:
        """Why the library will not decode this way, in its own words at the first step; None: it will."""
        run = denoise(self.model, self.canvas(problem, 0), setting.decoder, **setting.options)
        try:
            next(run)
        except ValueError as error:
            return str(error)
        return None

    def solve(self, problems: Sequence[Problem], setting: Setting, seeds: Sequence[int]) -> list[Outcome]:
        """Each on a canvas of its own, so that none waits for another, with passes of equal width merged."""
        canvases = [self.canvas(problem, seed) for problem, seed in zip(problems, seeds, strict=True)]
        for _ in together(self.model, [(canvas, self.passes(canvas, setting)) for canvas in canvases]):
            pass
        return [self.judged(problem, canvas) for problem, canvas in zip(problems, canvases, strict=True)]

    def time(self, problems: Sequence[Problem], setting: Setting, seeds: Sequence[int]) -> tuple[int, float]:
        """Tokens written and seconds taken, one problem after the other.

        Where one thread computes, seconds are the processor's own, so that what else it does is not counted.
        """
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if alone else time.perf_counter
        tokens, seconds = 0, 0.0
        for problem, seed in zip(problems, seeds, strict=True):
            canvas = self.canvas(problem, seed)
            self.settle()
            began = clock()
            for _ in denoise(self.model, canvas, setting.decoder, **setting.options):
                pass
            self.settle()
            seconds += clock() - began
            tokens += len(self.written(problem, canvas)[1])
        return tokens, seconds

    def memory(self, problem: Problem, setting: Setting) -> int:
        """The most bytes that decoding one problem takes at one time, beside the weights."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.time([problem], setting, [0])
            return torch.cuda.max_memory_allocated(self.device) - before
        with Peak() as peak:
            self.time([problem], setting, [0])
        return peak.bytes

    def settle(self) -> None:
        """Wait for a device that works by itself."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def written(self, problem: Problem, canvas: Canvas) -> tuple[list[int], list[int]]:
        """The tokens of the answer without and with the end-of-text token, and nothing behind that."""
        found = canvas.rows()[0][problem.answer].tolist()
        if self.text.eos_id in found:
            end = found.index(self.text.eos_id)
            return found[:end], found[: end + 1]
        return found, found

    def judged(self, problem: Problem, canvas: Canvas) -> Outcome:
        answer, tokens = self.written(problem, canvas)
        # An answer to a conversation is a text of its own.
        before = [] if self.talks(problem.example) else problem.row[: problem.first]
        completion = self.spelling.behind(before, answer)
        figures = self.task.figures(problem.example, completion)
        return Outcome(next(iter(figures.values())), len(tokens), canvas.forwards, completion, figures)
