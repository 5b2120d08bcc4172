"""How well blanks of several lengths fit what stands around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..canvas import Canvas
from ..denoiser import Denoiser
from ..objectives import Batch
from ..tasks import Example
from ..together import together
from .likelihood import score
from .problems import Outcome, Setting, Subject

DRAWS = 8  # noise draws that each choice of lengths is judged by


def fit(network: Denoiser, canvas: Canvas, seed: int) -> list[float]:
    """Of each filled row the bound, in nats, on the surprise at everything from its first blank on: the fill, and what
    follows it. The least is the choice of lengths that fits best; all rows see the same noise."""
    width = int(canvas.lengths.max())
    at = torch.arange(width)
    beyond = at >= canvas.lengths[:, None]
    answer = (at >= canvas.first[:, None]) & ~beyond
    tokens = canvas.tokens[:, :width]
    ids = torch.zeros(len(tokens), dtype=torch.long)
    parts = [each.to(tokens.device) for each in (answer, beyond.long(), ids)]
    batch = Batch(tokens, parts[0], documents=parts[1], ids=parts[2])
    whole = 0 if canvas.look.kind == "full" else None
    return score(network, batch, mode="bound", block=whole, draws=DRAWS, seed=seed).totals.tolist()


def searched(subject: Subject, example: Example, setting: Setting, seed: int, rooms: Sequence[int]) -> Outcome:
    """A problem written with each number of blanks in `rooms`; what fits best is judged, and all of them are paid for.

    ValueError for a problem with nothing behind its answer: there a shorter answer is no worse a fit.
    """
    if not example.tail:
        raise ValueError("lengths are chosen by what follows the blanks, and nothing follows them here")
    problems = [subject.problem(example, room) for room in rooms]
    canvases = [subject.canvas(problem, seed) for problem in problems]
    for _ in together(subject.model, [(canvas, subject.passes(canvas, setting)) for canvas in canvases]):
        pass
    bounds = [fit(subject.model, canvas, seed)[0] for canvas in canvases]
    best = min(range(len(rooms)), key=bounds.__getitem__)
    spent = sum(canvas.forwards + DRAWS for canvas in canvases)
    return replace(subject.judged(problems[best], canvases[best]), forwards=spent)
