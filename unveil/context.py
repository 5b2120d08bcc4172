"""What one forward pass recomputes, reuses, may look at, and whose logits will be read.

Shapes: B rows, L positions, W positions under the window, K keys, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]
"""(B or 1, W, 1) query and (1, 1, K) key positions to True where attention is allowed, broadcast to (B, W, K).

A rule and not a matrix, so that any window can ask it.
"""


def causal(q: Tensor, k: Tensor) -> Tensor:
    """A position looks at itself and what is before it. `Context.look` knows it and writes it out only if it must."""
    return k <= q


class Attend(Protocol):
    """How queries look at keys. `layer` lets a sparse pattern differ from layer to layer.

    q (B, H, W, D), k and v (B, G, K, D), mask (B or 1, 1, W or 1, K) bool or None; `causal` only without a mask.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int) -> Tensor: ...


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int) -> Tensor:
    """Every allowed key, by the fastest kernel PyTorch has for the case."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


@dataclass(frozen=True)
class Window:
    """One start per row and one width. `starts` is an int when all rows begin at one place: then slices are taken.

    Or positions anywhere in a row, `at`, each once and in order. Rows that need fewer than the widest are filled up
    with others, which are not `fresh`: what a pass finds there is thrown away, so that no row depends on its company.
    """

    starts: int | Tensor  # (B,) when rows differ
    width: int
    at: Tensor | None = None  # (B, W); `starts` are then the first of them
    fresh: Tensor | None = None  # (B, W) bool; None: all are
    end: int = 0  # how far `at` can reach
    known: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)  # `positions`, by device

    @classmethod
    def of(cls, starts: Tensor, width: int) -> Window:
        """The slice form when all starts are equal. `starts` (B,) should lie on the CPU to spare a device sync."""
        first = int(starts[0])
        return cls(first, width) if bool((starts == first).all()) else cls(starts, width)

    @classmethod
    def scattered(cls, wanted: Tensor, width: int | None = None) -> Window:
        """The True positions of `wanted` (B, L). `width`: the most that any row has, where that is known."""
        length, counts = wanted.shape[1], wanted.sum(1)
        most, least = torch.stack([counts.max(), counts.min()]).tolist() if width is None else (width, 0)
        if least == length:
            return cls(0, length)
        order = wanted.int().sort(dim=1, descending=True, stable=True).indices
        at = order[:, : max(most, 1)].sort(dim=1).values
        return cls(at[:, 0], at.shape[1], at, None if most == least else wanted.gather(1, at), length)

    @property
    def stop(self) -> int:
        """The first position no row's window reaches; of scattered positions, the end of what they are taken from."""
        if self.at is not None:
            return self.end
        return (self.starts if isinstance(self.starts, int) else int(self.starts.max())) + self.width

    def positions(self, device: torch.device) -> Tensor:
        """(1, W) or (B, W) positions within each row. Every layer asks for them, so they are made once."""
        if device not in self.known:
            if self.at is not None:
                self.known[device] = self.at.to(device)
            elif isinstance(self.starts, int):
                self.known[device] = torch.arange(self.starts, self.starts + self.width, device=device)[None]
            else:
                self.known[device] = self.starts.to(device)[:, None] + torch.arange(self.width, device=device)
        return self.known[device]

    def take(self, x: Tensor) -> Tensor:
        """(B, L, ...) to (B, W, ...)."""
        if isinstance(self.starts, int):
            return x[:, self.starts : self.starts + self.width]
        index = self.positions(x.device)
        return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))

    def put(self, x: Tensor, value: Tensor) -> None:
        """Write (B, W, ...) values into (B, L, ...), in place."""
        if isinstance(self.starts, int):
            x[:, self.starts : self.starts + self.width] = value
            return
        if self.fresh is not None:
            value = torch.where(self.fresh.view(*self.fresh.shape, *[1] * (x.dim() - 2)), value, self.take(x))
        x[torch.arange(len(x), device=x.device)[:, None], self.positions(x.device)] = value

    def rows(self, which: Tensor) -> Window:
        """The same window for some rows; `which` (R,) should lie on the CPU to spare a device sync."""
        if self.at is not None:
            here = which.to(self.at.device)
            fresh = None if self.fresh is None else self.fresh[here]
            return Window(self.at[here, 0], self.width, self.at[here], fresh, self.end)
        if isinstance(self.starts, int):
            return self
        return Window.of(self.starts[which.to(self.starts.device)], self.width)

    def widened(self, left: int) -> Window:
        """The same window begun `left` positions earlier."""
        return Window(self.starts - left, self.width + left)


class Store:
    """Keys and values kept from earlier passes, in buffers that are allocated once and written in place."""

    def __init__(self, capacity: int):
        self.capacity = capacity  # positions per row
        self.length = 0  # positions written so far, over all rows
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.place: Tensor | None = None  # (B,) where in the buffers each row is, -1: dropped; None: all in order

    def clear(self) -> None:
        """Forget what is stored and keep the memory."""
        self.length = 0

    def through(self, layer: Any, x: Tensor, run: Any, read: Tensor | None) -> Tensor:
        """One layer of a network in the pass `run`, (B, W, E) to (B, W, E), or to (N, E) under `read`.

        A store that keeps more than keys and values runs it for some positions and answers for the others.
        """
        return layer(x, run, read)

    def merge(self, layer: int, k: Tensor, v: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Put fresh (B, G, W, D) keys and values at `window`; return everything known, (B, G, K, D)."""
        if layer not in self.kept:
            size = (k.shape[0], k.shape[1], self.capacity, k.shape[3])
            self.kept[layer] = k.new_zeros(size), v.new_zeros(size)
        self.length = max(self.length, window.stop)
        pair = self.kept[layer]
        for buffer, fresh in zip(pair, (k, v), strict=True):
            window.put(buffer.transpose(1, 2), fresh.transpose(1, 2))
        return pair[0][:, :, : self.length], pair[1][:, :, : self.length]

    def collect(self, rows: Sequence[tuple[Store, int, int] | None]) -> None:
        """Take over the beginnings of rows of other stores: of each the store, its place there, how many positions.

        None for a row of which nothing is known.
        """
        sources: dict[int, list[tuple[int, Store, int, int]]] = {}
        for row, source in enumerate(rows):
            if source is not None:
                sources.setdefault(id(source[0]), []).append((row, *source))
        for group in sources.values():
            into, (store, *_), length = [each[0] for each in group], group[0][1:], max(each[3] for each in group)
            for layer, pair in store.kept.items():
                if layer not in self.kept:
                    size = len(rows), pair[0].shape[1], self.capacity, pair[0].shape[3]
                    self.kept[layer] = pair[0].new_zeros(size), pair[1].new_zeros(size)
                place = torch.tensor([each[2] for each in group], device=pair[0].device)
                for mine, theirs in zip(self.kept[layer], pair, strict=True):
                    mine[into, :, :length] = theirs[place, :, :length]
            self.length = max(self.length, length)

    def drop(self, rows: Tensor) -> None:
        """Free the memory of `rows` (B,) bool; no pass may take part in them from now on."""
        if self.place is None:
            self.place = torch.arange(len(rows))
        kept = (self.place >= 0) & ~rows.cpu()
        order = self.place[kept]
        self.kept = {layer: (k[order.to(k.device)], v[order.to(v.device)]) for layer, (k, v) in self.kept.items()}
        self.place = torch.where(kept, kept.cumsum(0) - 1, -1)


@dataclass(frozen=True)
class Context:
    """The argument of one forward pass: never a global, never hidden in a model."""

    window: Window | None = None  # recompute these; None: every position
    rule: Rule | None = None  # None: everything may look at everything
    positions: Tensor | None = None  # (W,) or (B, W) when they are not simply those of the window
    store: Store | None = None  # None: nothing is kept and the window begins at 0
    stale: Tensor | None = None  # (B, W) bool: compute only these and what is read; the rest is in the store
    read: Tensor | None = None  # (N,) flat indices into (B, W): logits come for these alone, as (N, V)
    exact: bool = False  # what is stored of positions outside the window is what computing them again would give
    attend: Attend = field(default=dense)
    apart: bool = False  # `attend` itself knows who may look at whom
    lasting: Tensor | None = None  # (B,) bool: rows of which later passes rely on this one, though it may not read them

    def __post_init__(self):
        if isinstance(self.window, slice):  # a slice is accepted for convenience
            if self.window.stop is None:
                raise ValueError("a window needs its stop: Context(window=slice(start, stop))")
            start = self.window.start or 0
            object.__setattr__(self, "window", Window(start, self.window.stop - start))

    def over(self, length: int) -> Window:
        """The window, for a sequence of `length` positions."""
        return self.window or Window(0, length)

    def narrowed(self) -> Context:
        """The pass over what is stale or read, in a window of scattered positions."""
        if self.stale is None or self.read is None:
            return replace(self, stale=None)
        assert self.window is not None
        assert self.window.starts == 0
        assert self.positions is None
        wanted = self.stale.clone()
        wanted.view(-1)[self.read] = True
        window = Window.scattered(wanted)
        if window.at is None:
            return replace(self, stale=None)
        index = torch.zeros_like(wanted, dtype=torch.long)
        index.scatter_(1, window.at, torch.arange(window.width, device=index.device).expand_as(window.at))
        read = self.read // wanted.shape[1] * window.width + index.view(-1)[self.read]
        return replace(self, window=window, stale=None, read=read)

    def look(self, window: Window, device: torch.device) -> tuple[Tensor | None, bool]:
        """The rule written out for this window, (B or 1, 1, W, K) bool, and whether it is simply causal.

        A rule that is simply full or simply causal never becomes a matrix; nor does one that allows everything
        known here (a block looking at finished blocks and at itself).
        """
        if self.rule is None:
            return None, False
        known = max(window.stop, self.store.length if self.store else 0)
        if self.rule is causal and isinstance(window.starts, int):
            if window.starts == 0 and known == window.width:
                return None, True
            if window.width == 1 and known == window.stop:
                return None, False
        q = window.positions(device)[:, :, None]
        k = torch.arange(known, device=device)[None, None]
        mask = self.rule(q, k)
        if mask.dim() == 2:
            mask = mask[None]
        if device.type == "cpu" and bool(mask.all()):
            return None, False
        return mask[:, None], False


EVERYTHING = Context()


@dataclass(frozen=True)
class Ask:
    """One pass that somebody wants computed: of the canvas as it is, or of another look at it."""

    tokens: Tensor  # (B, L)
    context: Context


Asking = Generator[Ask, Tensor, Tensor]
"""Yields passes, is sent the logits (N, V) of each, and returns those that a step goes by, (N, V)."""
