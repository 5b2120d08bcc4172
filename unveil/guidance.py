"""Two looks at one canvas: how their predictions are contrasted, and how the second keeps what it computes.

Shapes: B rows, L positions, N positions read, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from math import log

import torch
from torch import Tensor

from .canvas import Canvas
from .context import Context, Store
from .prediction import pieces

AWAY = 100.0  # nats between the least plausible token and the next: no draw ever crosses it


def contrast(strong: Tensor, weak: Tensor, scale: float, alpha: float = 0.0, rows: Tensor | None = None) -> Tensor:
    """weak + (1 + scale) * (strong - weak), (N, V), written over `strong`; only in `rows` (N,) where they are given.

    Tokens less probable than `alpha` times the best, by `strong`, come after all others, so that noise of the weak look
    is not amplified (the plausibility constraint of contrastive decoding, arXiv 2210.15097). They stay finite: who
    forbids all plausible tokens later still finds something. What `strong` forbids stays forbidden.
    """
    for here in pieces(strong):
        high, low = strong[here].float(), weak[here].float()
        guided = (low + (1 + scale) * (high - low)).masked_fill(high == -torch.inf, -torch.inf)
        if alpha > 0:
            best = high.amax(-1, keepdim=True)
            plausible = high >= best + log(alpha)
            worst = guided.masked_fill(~plausible, torch.inf).amin(-1, keepdim=True)
            guided = torch.where(plausible, guided, worst - AWAY + high - best)
        strong[here] = guided if rows is None else torch.where(rows[here, None], guided, high)
    return strong


class Second:
    """A second look at a canvas: where the first keeps keys and values, it keeps its own, in step with the first's."""

    def __init__(self, canvas: Canvas):
        self.store: Store | None = None
        # (B,) rows in which the first look has since written what this one was not there for
        self.behind = torch.ones(len(canvas.tokens), dtype=torch.bool, device=canvas.tokens.device)

    def beside(self, canvas: Canvas, context: Context, rows: Tensor) -> Context:
        """The context of a second pass, after the first pass was made by `context`; `rows` (B,) make use of it.

        To be called at every step, also when no row does: a row that rests through a pass beyond its block begins again
        from what the first look kept, which is what a second look that hid nothing would have kept. So no row depends
        on whether others rest.
        """
        first = context.store
        if first is None:
            return context
        if type(first) is not Store:
            raise ValueError(
                "a guide with a second look keeps keys and values of its own and nothing else, so it cannot follow "
                f"{type(first).__name__.lower()}, which keep more: use another cache"
            )
        late = self.behind & rows
        if bool(late.any()):
            self.catch_up(first, late)
        window = context.over(canvas.tokens.shape[1])
        everywhere = isinstance(window.starts, int) and window.starts == 0 and window.stop >= canvas.tokens.shape[1]
        beyond = (torch.as_tensor(window.starts) < canvas.starts) | everywhere
        self.behind = (self.behind | beyond.to(rows.device)) & ~rows
        return replace(context, store=self.store)

    def catch_up(self, first: Store, rows: Tensor) -> None:
        """Take over the first look's keys and values in `rows`."""
        if self.store is None:
            self.store = Store(first.capacity)
        for layer, pair in first.kept.items():
            if layer not in self.store.kept:
                self.store.kept[layer] = (pair[0].clone(), pair[1].clone())
                continue
            for mine, theirs in zip(self.store.kept[layer], pair, strict=True):
                mine[rows] = theirs[rows]
        self.store.length = max(self.store.length, first.length)
