"""The second driver: many canvases at once, their passes laid end to end in one model call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .canvas import Canvas
from .context import Ask, Context, Rule, Store, Window, causal
from .denoiser import Denoiser
from .nn.transformer import Sight, Transformer
from .sample import Passes

MOST = 4096  # positions in one model call; beyond it a longer call is no faster and takes more memory


@dataclass
class Job:
    """One canvas with its own decoder, cache, seeds and options, waiting as the coroutine of `sample.prepare`."""

    canvas: Canvas
    run: Passes
    asked: Ask | None = None  # the pass it wants computed


def together(model: Denoiser, jobs: Sequence[tuple[Canvas, Passes]]) -> Iterator[list[int]]:
    """Finish every canvas; after each round of passes, yield the numbers of the jobs that are still running.

    What a job writes does not depend on what else is in the batch: each looks at its own keys alone, and random choices
    are keyed by the row's seed. Sums may be ordered differently in a larger batch, so equality is to float32 rounding
    of the logits.
    """
    waiting = {number: Job(canvas, run) for number, (canvas, run) in enumerate(jobs)}
    while waiting:
        for number, job in list(waiting.items()):
            job.asked = job.asked or next(job.run, None)
            if job.asked is None:
                del waiting[number]
        with torch.inference_mode():
            found, _ = answers(model, [job.asked for job in waiting.values() if job.asked is not None])
            for job, logits in zip(waiting.values(), found, strict=True):
                job.asked = job.run.send(logits)
        yield list(waiting)


def answers(model: Denoiser, asks: Sequence[Ask]) -> tuple[list[Tensor], int]:
    """The logits (N, V) of each pass, and the number of model calls: those that a `Transformer` computes share some."""
    found: dict[int, Tensor] = {}
    shared: dict[int, Ask] = {}
    transformer: Transformer | None = None
    for number, ask in enumerate(asks):
        network, inner = model.inside(taking_part(ask))
        store = inner.context.store
        # A store that takes part in what layers do sees whole rows alone.
        if isinstance(network, Transformer) and (store is None or type(store).through is Store.through):
            transformer, shared[number] = network, inner
        else:
            found[number] = model(ask.tokens, ask.context)
    count = len(found)
    for numbers in calls(shared):
        assert transformer is not None
        found.update(zip(numbers, call(transformer, [shared[number] for number in numbers]), strict=True))
        count += 1
    return [found[number] for number in range(len(asks))], count


def calls(asks: dict[int, Ask]) -> Iterator[list[int]]:
    """The numbers of passes that are computed in one call, no more than `MOST` positions where there are several."""
    numbers, size = [], 0
    for number, ask in asks.items():
        more = len(ask.tokens) * ask.context.over(ask.tokens.shape[1]).width
        if numbers and size + more > MOST:
            yield numbers
            numbers, size = [], 0
        numbers, size = [*numbers, number], size + more
    if numbers:
        yield numbers


def call(network: Transformer, asks: Sequence[Ask]) -> Sequence[Tensor]:
    """One model call: every pass is a stretch of one long row, in which only attention keeps them apart."""
    if len(asks) == 1:
        return [network(asks[0].tokens, asks[0].context)]
    parts = [Part.of(network, ask) for ask in asks]
    reads, before = [], 0
    for part in parts:
        reads.append(part.read + before)
        before += len(part.tokens)
    context = Context(
        Window(0, before),
        positions=torch.cat([part.positions for part in parts])[None],
        read=torch.cat(reads),
        attend=Apart(parts),
        apart=True,
    )
    logits = network(torch.cat([part.tokens for part in parts])[None], context)
    return logits.split([len(read) for read in reads])


@dataclass(frozen=True)
class Part:
    """One pass as a stretch of a long row: R rows of W positions, one after the other."""

    tokens: Tensor  # (R W,)
    positions: Tensor  # (R W,)
    read: Tensor  # (N,) indices into the stretch
    context: Context
    window: Window
    sight: Sight
    near: Sight | None  # of the layers that see less far, where only some do
    far: frozenset[int]  # the others

    @classmethod
    def of(cls, network: Transformer, ask: Ask) -> Part:
        context = ask.context if ask.context.stale is None else ask.context.narrowed()
        window, device = context.over(ask.tokens.shape[1]), ask.tokens.device
        positions = window.positions(device) if context.positions is None else context.positions.to(device)
        positions = positions if positions.dim() == 2 else positions[None]
        sight = network.look(context, window, positions)
        near = network.look(context, window, positions, near=True) if network.mixes else None
        everywhere = positions.expand(len(ask.tokens), -1).reshape(-1)
        assert context.read is not None
        tokens = window.take(ask.tokens).reshape(-1)
        return cls(tokens, everywhere, context.read, context, window, sight, near, network.s.far)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """(R W, H, D) queries, (R W, G, D) keys and values to (R W, H, D), each row by itself."""
        q, k, v = (x.view(-1, self.window.width, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        if self.context.store is not None:
            k, v = self.context.store.merge(layer, k, v, self.window)
        mask, causal = self.sight if self.near is None or layer in self.far else self.near
        return self.context.attend(q, k, v, mask, causal, layer).transpose(1, 2).flatten(0, 1)


class Apart:
    """How the stretches of a long row look: each by its own rule at its own keys."""

    def __init__(self, parts: Sequence[Part]):
        self.parts, self.sizes = parts, [len(part.tokens) for part in parts]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int) -> Tensor:
        stretches = (x[0].transpose(0, 1).split(self.sizes) for x in (q, k, v))
        found = [part.attend(*x, layer) for part, *x in zip(self.parts, *stretches, strict=True)]
        return torch.cat(found)[None].transpose(1, 2)


def taking_part(ask: Ask) -> Ask:
    """The pass without the rows of which nothing is read, unless later passes rely on what it computes for them.

    A row that waits for others computes nothing: alone it would not have been asked either.
    """
    context, rows = ask.context, len(ask.tokens)
    store, read = context.store, context.read
    if rows == 1 or read is None or (store is not None and type(store) is not Store):
        return ask
    window = context.over(ask.tokens.shape[1])
    taking = torch.zeros(rows, dtype=torch.bool, device=read.device)
    if context.lasting is not None:
        taking |= context.lasting
    taking[read // window.width] = True
    if bool(taking.all()):
        return ask
    which = taking.nonzero()[:, 0].cpu()
    if not len(which):  # a pass that nobody needs; the model is to be asked of one row at least
        which = torch.zeros(1, dtype=torch.long) if store is None else held(store, rows)[:1]
    index = which.to(read.device)
    place = (taking.cumsum(0) - 1)[read // window.width]
    positions, stale = context.positions, context.stale
    return Ask(
        ask.tokens[index],
        replace(
            context,
            window=window.rows(which),
            rule=narrow(context.rule, index, rows),
            positions=positions if positions is None or len(positions) != rows else positions[index],
            store=None if store is None else Chosen(store, which, rows),
            stale=None if stale is None else stale[index],
            read=place * window.width + read % window.width,
            lasting=None,
        ),
    )


def held(store: Store, rows: int) -> Tensor:
    """The rows that a store has not dropped."""
    return torch.arange(rows) if store.place is None else (store.place >= 0).nonzero()[:, 0]


def narrow(rule: Rule | None, index: Tensor, rows: int) -> Rule | None:
    """A rule for the rows `index` (R,) out of `rows`."""
    if rule is None or rule is causal:
        return rule

    def narrowed(q: Tensor, k: Tensor) -> Tensor:
        if len(q) > 1:
            q = q.new_zeros(rows, *q.shape[1:]).index_copy(0, index, q)
        allowed = rule(q, k)
        return allowed[index] if len(allowed) > 1 else allowed

    return narrowed


class Chosen(Store):
    """Some rows of a store, for a pass that the others take no part in."""

    def __init__(self, whole: Store, which: Tensor, rows: int):
        """`which` (R,) of the `rows` of the canvas."""
        super().__init__(whole.capacity)
        self.whole, self.count = whole, rows if whole.place is None else int((whole.place >= 0).sum())
        self.which = which if whole.place is None else whole.place[which]
        self.length = whole.length

    def merge(self, layer: int, k: Tensor, v: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        self.whole.length = self.length = max(self.length, window.stop)
        if layer not in self.whole.kept:
            size = (self.count, k.shape[1], self.capacity, k.shape[3])
            self.whole.kept[layer] = k.new_zeros(size), v.new_zeros(size)
        index = self.which.to(k.device)
        found = []
        for buffer, fresh in zip(self.whole.kept[layer], (k, v), strict=True):
            rows = buffer[:, :, : self.length].index_select(0, index)
            window.put(rows.transpose(1, 2), fresh.transpose(1, 2))
            buffer[:, :, : self.length].index_copy_(0, index, rows)
            found.append(rows)
        return found[0], found[1]
