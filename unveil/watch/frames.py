"""What each step of a run changed, as plain data that a terminal, a page or a test can read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..canvas import Canvas
from ..context import EVERYTHING, Context
from ..decoders import Decoder
from ..denoiser import Denoiser
from ..sample import denoise


@dataclass(frozen=True)
class Frame:
    """The canvas after one step. Lists have one entry a row; positions count from 0 within the row."""

    forwards: int  # model calls since the beginning; 0: nothing has been written yet
    tokens: list[list[int]]  # each row at its true length; blanks hold the mask id
    blanks: list[list[int]]  # positions that are still to be written
    written: list[dict[int, float]]  # position to the probability its new token had when it was committed
    taken_back: list[list[int]] = field(default_factory=list)  # positions that became blank again


class Listening(Denoiser):
    """A denoiser that remembers what it said last, so that the loop itself need keep nothing."""

    def __init__(self, model: Denoiser):
        super().__init__()
        self.model = model
        self.mask_id, self.attention, self.shifted = model.mask_id, model.attention, model.shifted
        self.bos_id, self.context_length = model.bos_id, model.context_length
        self.said = torch.zeros(0, 0)  # (N, V) the latest logits
        self.read = torch.zeros(0, dtype=torch.long)  # (N,) what they speak of: flat indices into (B, W)

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        """(B, L) to (B, W, V), or to (N, V) under `ctx.read`."""
        logits = self.model(tokens, ctx)
        self.said = logits
        self.read = torch.arange(logits.shape[:-1].numel()) if ctx.read is None else ctx.read
        return logits


def frames(model: Denoiser, canvas: Canvas, decoder: Decoder | str = "confidence", **options) -> Iterator[Frame]:
    """The canvas before the first step and after each one. Options are those of `sample.denoise`."""
    listener = Listening(model)
    rows = len(canvas.tokens)
    yield still(canvas, [{} for _ in range(rows)], [[] for _ in range(rows)])
    before = canvas.tokens.clone()
    for _ in denoise(listener, canvas, decoder, **options):
        now = canvas.tokens[:, : before.shape[1]]
        written: list[dict[int, float]] = [{} for _ in range(rows)]
        taken_back: list[list[int]] = [[] for _ in range(rows)]
        changed = now != before
        p = committed(canvas, listener, changed)
        for row, at in changed.nonzero().tolist():
            if now[row, at] == canvas.mask_id:
                taken_back[row].append(at)
            else:
                written[row][at] = float(p[row, at])
        before = canvas.tokens.clone()
        yield still(canvas, written, taken_back)


def still(canvas: Canvas, written: list[dict[int, float]], taken_back: list[list[int]]) -> Frame:
    """The canvas as it stands."""
    open_ = (canvas.tokens == canvas.mask_id) & ~canvas.given
    return Frame(
        canvas.forwards,
        [row.tolist() for row in canvas.rows()],
        [row.nonzero()[:, 0].tolist() for row in open_],
        written,
        taken_back,
    )


def committed(canvas: Canvas, listener: Listening, changed: Tensor) -> Tensor:
    """(B, L) the probability that the latest pass gave to the token now in each `changed` (B, L) position."""
    p = torch.zeros(changed.shape)
    width, read = canvas.window.width, listener.read
    row, place = read // width, read % width
    at = canvas.window.positions(read.device).expand(len(changed), -1)[row, place]
    new = (at < changed.shape[1]) & changed[row, at.clamp(max=changed.shape[1] - 1)]
    row, at = row[new], at[new]
    token = canvas.tokens[row, at]
    p[row.cpu(), at.cpu()] = listener.said[new].float().softmax(-1).gather(-1, token[:, None])[:, 0].cpu()
    return p
