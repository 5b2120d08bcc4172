"""Rows that are written in step on one canvas: they share every option and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import spec
from ..attention import FULL
from ..caches import Cache
from ..caches.causal import Causal
from ..canvas import Canvas
from ..context import Ask, Store
from ..decoders import Decoder
from ..denoiser import Denoiser
from ..guides import Guide
from ..sample import prepare
from .messages import Step, Submit, Write

PATIENCE = 3  # rounds that any row waits in all so as to go on in company,
SHARE = 8  # and one part in so many of those that it has before it where that is more
Likely = list[tuple[int, float]]
"""Tokens and their log-probabilities, best first."""


@dataclass(frozen=True)
class Options:
    """What rows of one cohort have in common; spec strings as everywhere."""

    decoder: str
    cache: str
    block: int | None
    steps: int | None
    guide: str | None
    full: bool
    alone: str = ""  # the id of a request whose rows share a canvas with nobody else's


@dataclass
class Request:
    """What was submitted, and where it stands."""

    order: Submit
    options: Options
    arrived: float  # seconds by the clock of `perf_counter`
    admitted: float = 0.0
    members: list[Member] = field(default_factory=list)  # that are not done

    @property
    def id(self) -> str:
        return self.order.id


@dataclass
class Seat:
    """Where a row goes on, with what was written and computed of it elsewhere."""

    tokens: list[int]
    first: int  # blank
    store: Store | None = None
    place: int = 0  # of the row in the store's buffers
    known: int = 0  # positions whose keys and values are in `store`
    earlier: int = 0  # blocks written elsewhere


@dataclass(eq=False)
class Member:
    """One row of a request."""

    request: Request
    index: int  # in the request
    tokens: list[int]
    seed: int
    first: int  # blank
    blanks: int
    bytes: int = 0  # set aside for it
    reuses: bool = False  # are keys and values of its prompt the same whatever follows?
    moves: bool = False  # may it go on among others when a block is finished?
    forwards: int = 0
    reused: int = 0  # positions of the prompt that were found computed
    seat: Seat = field(init=False)
    patience: int = field(init=False)  # rounds that it may still wait for company
    told: int = 0  # steps that were said of it
    silent: int = 0  # steps not to say again, of a row that was begun anew
    apart: bool = False  # may it share no canvas?

    def __post_init__(self):
        self.seat, self.patience = Seat(self.tokens, self.first), max(PATIENCE, self.blanks // SHARE)

    @property
    def key(self) -> tuple:
        """Rows that agree on this can be written in step without one's numbers depending on the other."""
        return self.request.options, len(self.tokens) - self.first, self.blanks

    def again(self) -> None:
        """Begin anew, by itself: what it wrote will be written again, and is not said again."""
        self.forwards, self.seat = 0, Seat(self.tokens, self.first)
        self.silent, self.told, self.apart = self.told, 0, True


class Cohort:
    def __init__(self, model: Denoiser, members: Sequence[Member], decoder: Decoder):
        """`decoder` was built for this cohort alone. ValueError when the options do not go with the rows."""
        device = next(model.parameters()).device
        options = members[0].request.options
        self.members: list[Member | None] = list(members)  # None: closed
        self.decoder = decoder
        self.cache: Cache = spec.build("caches", options.cache)
        guide: Guide | None = spec.build("guides", options.guide) if options.guide else None
        own: Guide | None = spec.build("guides", decoder.guide) if decoder.guide else None
        self.guides = [each for each in (guide, own) if each is not None]
        rows = [torch.tensor(member.seat.tokens, device=device) for member in members]
        seeds = torch.tensor([member.seed for member in members])
        self.canvas = Canvas.filling(rows, model.mask_id, seeds, FULL if options.full else model.attention)
        self.canvas.earlier = torch.tensor([member.seat.earlier for member in members], device=device)
        list(self.canvas.blocks(options.block))  # makes all the room that there will be
        self.resume()
        self.before = numbers(self.canvas.tokens).copy()
        chosen = {"cache": self.cache, "block": options.block, "steps": options.steps, "guide": guide}
        self.run = prepare(model, self.canvas, self.decoder, **chosen)
        self.lengths = numbers(self.canvas.lengths)
        self.place = np.arange(self.before.shape[1])
        self.end = model.eos_id
        self.asked: Ask | None = None
        self.leaving: list[int] = []  # rows that are closed; what is kept of them goes when the step is over
        self.bytes = sum(member.bytes for member in members)  # set aside for all
        self.freed = 0  # of them, for rows whose memory goes with the last row's

    def resume(self) -> None:
        """Hand the cache the keys and values that rows bring along."""
        seats = [member.seat for member in self.members if member is not None]
        if not any(seat.known for seat in seats):
            return
        assert isinstance(self.cache, Causal)
        store = Store(self.canvas.tokens.shape[1])
        store.collect([None if seat.store is None else (seat.store, seat.place, seat.known) for seat in seats])
        self.cache.resume(store, torch.tensor([seat.known for seat in seats]))
        for seat in seats:
            seat.store = None

    @property
    def rests(self) -> bool:
        """Is a block finished, so that its rows may go on elsewhere?"""
        over = self.canvas.step >= self.canvas.budget or self.canvas.finished
        return self.asked is None and self.canvas.latest is not None and self.moves and over

    @property
    def moves(self) -> bool:
        """May its rows go on elsewhere when a block is finished?"""
        return all(member is None or member.moves for member in self.members)

    @property
    def left(self) -> int:
        """Rounds after which the block is finished for certain."""
        return self.canvas.budget - self.canvas.step

    def onward(self) -> list[tuple[Member, int, int]]:
        """The rows that are left: what will be known of each, and where its next block begins."""
        starts, width = self.canvas.starts.tolist(), self.canvas.block.width
        rows = zip(self.members, starts, strict=True)
        return [(member, start, start + width) for member, start in rows if member is not None]

    def part(self) -> None:
        """Make the rows that are left ready to go on on other canvases. Of this one nothing is used any more."""
        assert isinstance(self.cache, Causal)
        canvas, store = self.canvas, self.cache.store
        for member, known, first in self.onward():
            row = self.members.index(member)
            tokens = canvas.tokens[row, : len(member.tokens)].tolist()
            place = row if store.place is None else int(store.place[row])
            member.seat = Seat(tokens, first, store, place, known, member.seat.earlier + canvas.number)

    def proceed(self) -> bool:
        """Ask for the first pass of the next step; False when there is none because everything is written."""
        self.sweep()
        self.asked = next(self.run, None)
        return self.asked is not None

    def hear(self, logits: Tensor) -> bool:
        """Take the logits of the pass asked for; True when that finished a step."""
        assert self.asked is not None
        context = self.asked.context
        assert context.read is not None
        rows = numbers(context.read) // context.over(self.asked.tokens.shape[1]).width
        for row in np.bincount(rows).nonzero()[0].tolist():
            member = self.members[row]
            if member is not None:
                member.forwards += 1
        self.asked = self.run.send(logits)
        return self.asked is None

    def told(self) -> tuple[list[Step], list[tuple[int, str]]]:
        """What has changed since this was asked last, and the rows that are done now with the reason."""
        canvas = self.canvas
        tokens, written = numbers(canvas.tokens), ~numbers(canvas.given)
        blank = written & (tokens == canvas.mask_id)
        final = self.final(blank, written)
        full, over = ~blank.any(1) & (final >= self.lengths), canvas.latest is None
        ended = np.zeros_like(full)
        if self.end is not None:
            ended = (written & (tokens == self.end) & (self.place < final[:, None])).any(1)
        steps, done = self.changes(tokens, final.tolist()), []
        for row in (full | ended | over).nonzero()[0].tolist():
            member = self.members[row]
            if member is not None and (full[row] or over or member.request.order.ends):
                done.append((row, "end" if ended[row] and member.request.order.ends else "length"))
        return steps, done

    def final(self, blank: np.ndarray, written: np.ndarray) -> np.ndarray:
        """(B,) where each row's first position is that may still change; (B, L) what is blank, and was not given."""
        canvas, far = self.canvas, blank.shape[1]
        final = np.where(blank, self.place, far).min(1)
        if self.decoder.takes_back and canvas.latest is not None and canvas.step < canvas.budget:
            moving = written & (self.place >= numbers(canvas.starts)[:, None])
            block = np.where(moving, self.place, far).min(1)
            final = np.where(numbers(self.decoder.rests(canvas)), final, np.minimum(final, block))
        return np.minimum(final, self.lengths)

    def changes(self, tokens: np.ndarray, final: Sequence[int]) -> list[Step]:
        """What to say of each row whose (B, L) tokens have changed."""
        canvas = self.canvas
        row, at = (tokens != self.before).nonzero()
        if not len(row):
            return []
        self.before, new, now = tokens.copy(), tokens[row, at], time.perf_counter()
        found: dict[int, Step] = {}
        columns = (x.tolist() for x in (row, at, new))
        for line, place, token, level, others in zip(*columns, *self.chances(row, at, new), strict=True):
            member = self.members[line]
            if member is None:
                continue
            top = member.request.order.top
            if line not in found:
                request, number = member.request, member.seat.earlier + canvas.number
                spent = round(now - request.admitted, 6)
                where = member.forwards, number, canvas.step
                found[line] = Step(request.id, member.index, *where, [], [], final[line], spent)
            if token == canvas.mask_id:
                found[line].taken_back.append(place)
            else:
                found[line].writes.append(Write(place, token, None if top is None else level, others[: top or 0]))
        return [step for line, step in found.items() if self.news(line)]

    def chances(self, row: np.ndarray, at: np.ndarray, new: np.ndarray) -> tuple[list[float | None], list[Likely]]:
        """What the latest pass said of (M,) new tokens: their log-probabilities, and the likeliest ones."""
        levels: list[float | None] = [None] * len(row)
        likely: list[Likely] = [[] for _ in levels]
        canvas, latest = self.canvas, self.canvas.latest
        tops = [member.request.order.top for member in self.members if member is not None]
        if latest is None or all(top is None for top in tops):
            return levels, likely
        window, read = canvas.window, numbers(latest.read)
        width = window.width
        index = np.full(len(self.members) * width, -1)
        index[read] = np.arange(len(read))
        column = at - (window.starts if isinstance(window.starts, int) else numbers(window.starts)[row])
        inside = (column >= 0) & (column < width)
        which = np.where(inside, index[row * width + column.clip(0, width - 1)], -1)
        spoken = ((which >= 0) & (new != canvas.mask_id)).nonzero()[0]
        if not len(spoken):
            return levels, likely
        device = latest.logits.device
        chosen = torch.from_numpy(which[spoken]).to(device)
        said = latest.logp_of(chosen, torch.from_numpy(new[spoken]).to(device)).tolist()
        for number, level in zip(spoken.tolist(), said, strict=True):
            levels[number] = level if math.isfinite(level) else None
        if top := max(top or 0 for top in tops):
            best = (x.tolist() for x in latest.likeliest(chosen, top))
            for number, *pair in zip(spoken.tolist(), *best, strict=True):
                likely[number] = [(t, level) for t, level in zip(*pair, strict=True) if math.isfinite(level)]
        return levels, likely

    def news(self, row: int) -> bool:
        """Count a step of a row; has it not been said before?"""
        member = self.members[row]
        assert member is not None
        member.told += 1
        return member.told > member.silent

    def exact(self, member: Member) -> tuple[list[int], Store, int] | None:
        """The tokens whose keys and values are kept for good, the store and where in its buffers; None: there are none.

        To be asked between two steps: what the next pass asked for computes is not there yet.
        """
        if not isinstance(self.cache, Causal) or self.cache.sub:
            return None
        row, store = self.members.index(member), self.cache.store
        place = row if store.place is None else int(store.place[row])
        return self.canvas.tokens[row, : int(self.cache.here[row])].tolist(), store, place

    def close(self, member: Member) -> None:
        """Say nothing more of a row. From the next step on nothing is read of it, and its memory is free."""
        row = self.members.index(member)
        self.members[row] = None
        self.leaving.append(row)
        self.freed += member.bytes

    def sweep(self) -> None:
        """Let go of rows that are closed."""
        if not self.leaving:
            return
        gone = torch.zeros(len(self.members), dtype=torch.bool)
        gone[self.leaving] = True
        self.canvas.close(torch.tensor(self.leaving, device=self.canvas.given.device))
        self.leaving = []
        if self.releases:
            self.cache.release(gone)
            self.bytes, self.freed = self.bytes - self.freed, 0

    @property
    def living(self) -> int:
        return sum(member is not None for member in self.members)

    @property
    def releases(self) -> bool:
        """Can a row's memory be freed before the others'? A second look numbers rows as the canvas does."""
        return not any(each.looks for guide in self.guides for each in guide.chain())


def numbers(x: Tensor) -> np.ndarray:
    """The same numbers where small arrays are quickly looked at; on a CPU in the same memory."""
    return x.cpu().numpy()
