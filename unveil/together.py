"""The second driver: many canvases at once, their passes of equal width merged into one model call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas
from .context import Ask, Context, Store, Window
from .denoiser import Denoiser
from .sample import Passes


@dataclass
class Job:
    """One request: its own canvas, decoder, cache, seeds and options, waiting as the coroutine of `sample.prepare`."""

    canvas: Canvas
    run: Passes
    asked: Ask | None = None  # the pass it wants computed


def together(model: Denoiser, jobs: Sequence[tuple[Canvas, Passes]]) -> Iterator[list[int]]:
    """Finish every canvas; after each round of passes, yield the numbers of the jobs that are still running.

    What a job writes does not depend on what else is in the batch: masks are per row, and random choices are keyed by
    the row's seed. Sums may be ordered differently in a larger batch, so equality is to float32 rounding of the logits.
    """
    waiting = {number: Job(canvas, run) for number, (canvas, run) in enumerate(jobs)}
    while waiting:
        for number, job in list(waiting.items()):
            job.asked = job.asked or next(job.run, None)
            if job.asked is None:
                del waiting[number]
        groups: dict[tuple, list[Job]] = {}
        for job in waiting.values():
            groups.setdefault(alike(job), []).append(job)
        for group in groups.values():
            with torch.inference_mode():
                compute(model, group)
        yield list(waiting)


def alike(job: Job) -> tuple:
    """Passes that agree on this can be merged into one."""
    assert job.asked is not None
    context = job.asked.context
    assert context.window is not None
    from_zero = isinstance(context.window.starts, int) and context.window.starts == 0
    store, whole = context.store, context.stale is None
    alone = None if store is None or type(store) is Store else id(store)  # a store of its own kind is not merged
    own = context.positions is None
    return context.window.width, from_zero, whole, store is None, alone, own, context.exact, context.attend


def compute(model: Denoiser, group: Sequence[Job]) -> None:
    """One model call for passes of equal width; each job is sent its own logits."""
    if len(group) == 1:
        job = group[0]
        assert job.asked is not None
        job.asked = job.run.send(model(job.asked.tokens, job.asked.context))
        return
    asked = [job.asked for job in group if job.asked is not None]
    contexts = [each.context for each in asked]
    windows = [context.window for context in contexts if context.window is not None]
    reads = [context.read for context in contexts if context.read is not None]
    counts = [len(each.tokens) for each in asked]
    width, room = windows[0].width, max(each.tokens.shape[1] for each in asked)
    tokens = torch.cat([F.pad(each.tokens, (0, room - each.tokens.shape[1])) for each in asked])
    starts = torch.cat(
        [
            torch.full((count,), window.starts) if isinstance(window.starts, int) else window.starts
            for window, count in zip(windows, counts, strict=True)
        ]
    )
    stale = [context.stale for context in contexts if context.stale is not None]
    moved = [(context.positions, count) for context, count in zip(contexts, counts, strict=True)]
    positions = [at.expand(count, width) for at, count in moved if at is not None]
    before = [sum(counts[:index]) * width for index in range(len(counts))]
    stores = [context.store for context in contexts if context.store is not None]
    joined = Joined(stores, counts) if stores else None
    logits = model(
        tokens,
        Context(
            window=Window.of(starts, width),
            rule=None if all(c.rule is None for c in contexts) and joined is None else side_by_side(contexts, counts),
            positions=torch.cat(positions) if positions else None,
            store=joined,
            stale=torch.cat(stale) if stale else None,
            read=torch.cat([read + offset for read, offset in zip(reads, before, strict=True)]),
            exact=contexts[0].exact,
            attend=contexts[0].attend,
        ),
    )
    for job, part in zip(group, logits.split([len(read) for read in reads]), strict=True):
        job.asked = job.run.send(part)


class Joined(Store):
    """Several stores seen as one: rows are kept where they belong and padded to one length for the pass."""

    def __init__(self, stores: Sequence[Store], counts: Sequence[int]):
        super().__init__(max(store.capacity for store in stores))
        self.stores, self.counts = stores, counts
        self.length = max(store.length for store in stores)

    def merge(self, layer: int, k: Tensor, v: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        parts, first = [], 0
        k_rows, v_rows = k.split(list(self.counts)), v.split(list(self.counts))
        for store, count, k_here, v_here in zip(self.stores, self.counts, k_rows, v_rows, strict=True):
            parts.append(store.merge(layer, k_here, v_here, window.rows(first, count)))
            first += count
        self.length = max(store.length for store in self.stores)
        keys, values = zip(*parts, strict=True)
        return self.stack(keys), self.stack(values)

    def stack(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(part, (0, 0, 0, self.length - part.shape[2])) for part in parts])


def side_by_side(contexts: Sequence[Context], counts: Sequence[int]):
    """One rule for the merged rows: each job's own, and no key that its own store does not hold."""

    def rule(q: Tensor, k: Tensor) -> Tensor:
        q = q.expand(sum(counts), -1, -1)
        parts = []
        for context, rows in zip(contexts, q.split(list(counts)), strict=True):
            known = max(int(rows.max()) + 1, context.store.length if context.store else 0)
            allowed = (k < known).expand(len(rows), rows.shape[1], -1)
            parts.append(allowed if context.rule is None else allowed & context.rule(rows, k))
        return torch.cat(parts)

    return rule
