"""Record trajectories: the sampling loop, seen from the outside after every step.

Shapes: B rows, L positions, W positions under the window, P masked positions of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...attention import FULL, Attention
from ...canvas import Canvas
from ...decoders import Decoder, quota, top
from ...decoders.confidence import Confidence
from ...denoiser import Denoiser
from ...nn.alignment import listening
from ...noise import uniform
from ...prediction import Prediction
from ...sample import denoise
from .recording import Recording
from .sequences import Sequences

ORDERS = ("confidence", "random")
REVEAL = 2  # keys the noise that orders positions, as in the other decoders
STATED = 12  # keys the noise that chooses positions of which states are kept


@dataclass
class Shuffled(Decoder):
    """Commit the likeliest tokens, an equal share every step, in an order drawn once (LLaDA's random remasking)."""

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        soon = -uniform(canvas.seeds[:, None], REVEAL, canvas.window.positions(canvas.tokens.device))
        chosen = top(soon.expand_as(canvas.seen), canvas.open & seen.seen, quota(canvas))
        return torch.where(chosen, seen.best, canvas.seen)


@dataclass
class Watched(Decoder):
    """Another decoder that is also told what the model says of tokens that it has written. It writes as before."""

    revises = True
    lingers = True
    inner: Decoder = field(default_factory=Confidence)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        return self.inner.write(canvas, seen)


def ordered(order: str) -> Decoder:
    """The decoder of an order. Both reveal an equal share of the blanks every step, each as its likeliest token."""
    if order not in ORDERS:
        raise ValueError(f"no order called {order!r}; there are: {', '.join(ORDERS)}")
    return Confidence() if order == "confidence" else Shuffled()


def attention(model: Denoiser) -> Attention:
    """How a model looks while blanks are filled. ValueError where it cannot fill any.

    A leader model looks both ways, as in the share of full batches that it was trained on. A block model keeps its
    attention; each of its blocks is then a trajectory of its own, in which nothing behind the block is seen.
    """
    if model.attention.kind == "causal" or model.mask_id < 0:
        raise ValueError("an autoregressive model fills no blanks, so there is no trajectory: adapt it first")
    return FULL if model.attention.kind == "leader" else model.attention


def record(
    model: Denoiser,
    sequences: Sequences,
    hidden: NDArray[np.bool_],
    order: str = "confidence",
    steps: int = 32,
    *,
    seed: int = 0,
    batch: int = 32,
    stated: int = 0,
    stated_steps: NDArray[np.integer] | None = None,
    report: Callable[[int], None] | None = None,
) -> Recording:
    """Fill what is `hidden` (N, L) in so many steps, and note what the model says at each.

    Blocks of a block model have so many steps each. States are kept of `stated` masked positions, drawn at random, at
    `stated_steps`. `report` is told windows done.
    """
    look = attention(model)
    count = int(hidden.sum())
    kept_steps = np.zeros(0, np.int16) if stated_steps is None or not stated else stated_steps.astype(np.int16)
    stated = min(stated, count) if len(kept_steps) else 0
    parts = []
    # One draw for all windows, so that batches do not change it.
    level = uniform(seed, STATED, torch.arange(count)).numpy()
    wanted = np.zeros(count, bool)
    wanted[np.argsort(level)[:stated]] = True
    ends = np.cumsum(hidden.sum(1))
    for start in range(0, len(hidden), batch):
        here = slice(start, start + batch)
        first = int(ends[start - 1]) if start else 0
        some = wanted[first : int(ends[min(start + batch, len(ends)) - 1])]
        canvas = masked(model, sequences.take(here), hidden[here], seed, look)
        parts.append(Follower(canvas, hidden[here], steps, some, kept_steps).follow(model, order))
        if report:
            report(min(start + batch, len(hidden)))
    row, place = np.nonzero(hidden)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Recording(
        tokens=sequences.tokens,
        fine=sequences.fine,
        source=sequences.source,
        row=row.astype(np.int32),
        place=place.astype(np.int32),
        stated=np.flatnonzero(wanted).astype(np.int32),
        stated_steps=kept_steps,
        about={"order": order, "steps": steps, "seed": seed, "attention": look.kind},
        **columns,
    )


def masked(model: Denoiser, sequences: Sequences, hidden: NDArray[np.bool_], seed: int, look: Attention) -> Canvas:
    """The canvas of some windows whose hidden positions are blank."""
    device = next(model.parameters()).device
    tokens = torch.from_numpy(np.where(hidden, model.mask_id, sequences.tokens).astype(np.int64)).to(device)
    seeds = torch.from_numpy(sequences.source.astype(np.int64)) * 1_000_003 + seed
    return Canvas.filling(tokens, model.mask_id, seeds, look)


class Follower:
    """Follows one canvas to its end."""

    def __init__(self, canvas: Canvas, hidden: NDArray[np.bool_], steps: int, stated: NDArray, kept: NDArray):
        self.canvas, self.steps = canvas, steps
        device = canvas.tokens.device
        self.flat = torch.full(canvas.tokens.shape, -1, dtype=torch.long, device=device)  # (B, L) to P
        row, place = np.nonzero(hidden)
        self.row, self.place = torch.from_numpy(row).to(device), torch.from_numpy(place).to(device)
        count = len(row)
        self.flat[self.row, self.place] = torch.arange(count, device=device)
        self.known = torch.zeros(count, dtype=torch.bool, device=device)
        self.predicted = np.full((count, steps), -1, np.int32)
        self.probability = np.full((count, steps), np.nan, np.float32)
        self.entropy = np.full((count, steps), np.nan, np.float32)
        self.revealed = np.full(count, -1, np.int16)
        self.which = torch.from_numpy(np.flatnonzero(stated)).to(device)
        self.kept = [int(step) for step in kept]
        self.states: np.ndarray | None = None

    def follow(self, model: Denoiser, order: str) -> dict[str, np.ndarray]:
        """All of it; columns of a recording."""
        decoder = Watched(inner=ordered(order))
        lag = int(model.shifted)  # a shifted network speaks of a token one position before it
        with listening(model) if len(self.which) else nullcontext([]) as heard:
            for canvas in denoise(model, self.canvas, decoder, cache="recompute", steps=self.steps):
                self.see(canvas, heard, lag)
                heard.clear()
        self.fill()
        states = np.zeros((len(self.which), len(self.kept), 0, 0), np.float16) if self.states is None else self.states
        return {
            "predicted": self.predicted,
            "probability": self.probability,
            "entropy": self.entropy,
            "revealed": self.revealed,
            "states": states,
        }

    def see(self, canvas: Canvas, heard: list[Tensor], lag: int) -> None:
        """One step: what the pass said, then what was written."""
        seen, step = canvas.latest, canvas.step - 1
        assert seen is not None
        row, place = seen.places
        at = self.flat[row, place]
        shown = seen.spread(torch.where(self.known[at], canvas.tokens[row, place], flat(seen, seen.best)), canvas.seen)
        where = at.cpu().numpy()
        self.predicted[where, step] = flat(seen, shown).cpu().numpy()
        self.probability[where, step] = flat(seen, seen.probability(shown)).float().cpu().numpy()
        self.entropy[where, step] = flat(seen, seen.entropy).float().cpu().numpy()
        if step in self.kept and heard:
            self.hear(step, heard, at, lag)
        new = (canvas.tokens[self.row, self.place] != canvas.mask_id) & ~self.known
        self.revealed[new.cpu().numpy()] = step
        self.known |= new

    def hear(self, step: int, heard: list[Tensor], read: Tensor, lag: int) -> None:
        """States of the positions that are to be kept; of the last block there are those that were read alone."""
        order = torch.full_like(self.row, -1)
        order[read] = torch.arange(len(read), device=read.device)
        there = order[self.which] >= 0  # all of them, but for models that write block by block
        which = self.which[there]
        layers = [states[self.row[which], self.place[which] - lag] for states in heard[:-1]]
        layers.append(heard[-1][order[which]])
        found = torch.stack(layers, 1).to(torch.float16).cpu().numpy()
        if self.states is None:
            self.states = np.zeros((len(self.which), len(self.kept), *found.shape[1:]), np.float16)
        self.states[there.cpu().numpy(), self.kept.index(step)] = found

    def fill(self) -> None:
        """Steps after a block was full repeat its last."""
        for step in range(1, self.steps):
            idle = self.predicted[:, step] < 0
            for values in (self.predicted, self.probability, self.entropy):
                values[idle, step] = values[idle, step - 1]
        if self.states is not None:
            for index in range(1, len(self.kept)):
                idle = ~self.states[:, index].any((1, 2))
                self.states[idle, index] = self.states[idle, index - 1]


def flat(seen: Prediction, values: Tensor) -> Tensor:
    """(B, W) to the (N,) positions read."""
    return values.reshape(-1)[seen.read]
