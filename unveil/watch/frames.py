"""What each step of a run changed, as plain data that a terminal, a page, a file or a test can read."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..canvas import Canvas
from ..decoders import Decoder
from ..denoiser import Denoiser
from ..sample import denoise


class Said(NamedTuple):
    """What a pass said of one position."""

    best: int  # the likeliest token
    confidence: float  # its probability
    entropy: float  # nats
    gap: float  # its logit less that of the second


@dataclass(frozen=True)
class Frame:
    """The canvas after one step. Lists have one entry a row; positions count from 0 within the row."""

    forwards: int  # model calls since the beginning; 0: nothing has been written yet
    tokens: list[list[int]]  # each row at its true length; blanks hold the mask id
    blanks: list[list[int]]  # positions that are still to be written
    written: list[dict[int, float]]  # position to the probability of its new token; nan where no pass spoke of it
    taken_back: list[list[int]] = field(default_factory=list)  # positions that became blank again
    block: int = 0  # from 1
    step: int = 0  # of the block, from 1
    seconds: float = 0.0  # that the step took
    said: list[dict[int, Said]] = field(default_factory=list)  # of every position read, where that was asked for


def frames(
    model: Denoiser, canvas: Canvas, decoder: Decoder | str = "confidence", *, statistics: bool = False, **options
) -> Iterator[Frame]:
    """The canvas before the first step and after each one. Options are those of `sample.denoise`.

    `statistics` adds what each pass said of every position it read.
    """
    rows = len(canvas.tokens)
    yield still(canvas, [{} for _ in range(rows)], [[] for _ in range(rows)])
    run = denoise(model, canvas, decoder, **options)
    before = canvas.tokens.clone()
    while True:
        began = time.perf_counter()
        if next(run, None) is None:
            return
        seconds = time.perf_counter() - began
        now = canvas.tokens[:, : before.shape[1]]
        written: list[dict[int, float]] = [{} for _ in range(rows)]
        taken_back: list[list[int]] = [[] for _ in range(rows)]
        changed = now != before
        p = committed(canvas, changed)
        for row, at in changed.nonzero().tolist():
            if now[row, at] == canvas.mask_id:
                taken_back[row].append(at)
            else:
                written[row][at] = float(p[row, at])
        before = canvas.tokens.clone()
        said = listened(canvas) if statistics else []
        yield still(canvas, written, taken_back, block=canvas.number, step=canvas.step, seconds=seconds, said=said)


def still(canvas: Canvas, written: list[dict[int, float]], taken_back: list[list[int]], **more) -> Frame:
    """The canvas as it stands."""
    open_ = (canvas.tokens == canvas.mask_id) & ~canvas.given
    return Frame(
        canvas.forwards,
        [row.tolist() for row in canvas.rows()],
        [row.nonzero()[:, 0].tolist() for row in open_],
        written,
        taken_back,
        **more,
    )


def committed(canvas: Canvas, changed: Tensor) -> Tensor:
    """(B, L) the probability that the latest pass gave to the token now in each `changed` (B, L) position."""
    p = torch.full(changed.shape, math.nan)
    seen = canvas.latest
    assert seen is not None
    row, at = (places.cpu() for places in seen.places)
    said = seen.probability(canvas.seen).reshape(-1)[seen.read].cpu()
    new = (at < changed.shape[1]) & changed.cpu()[row, at.clamp(max=changed.shape[1] - 1)]
    p[row[new], at[new]] = said[new]
    return p


def listened(canvas: Canvas) -> list[dict[int, Said]]:
    """What the latest pass said of every position it read."""
    seen = canvas.latest
    assert seen is not None
    row, at = seen.places
    kinds = seen.best, seen.confidence, seen.entropy, seen.gap
    columns = [kind.reshape(-1)[seen.read].tolist() for kind in kinds]
    found: list[dict[int, Said]] = [{} for _ in canvas.tokens]
    for where, place, *values in zip(row.tolist(), at.tolist(), *columns, strict=True):
        found[where][place] = Said(*values)
    return found
