"""What one forward pass recomputes, reuses, may look at, and whose logits will be read.

Shapes: B rows, L positions, W positions under the window, K keys, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

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

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int
    ) -> Tensor: ...


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int) -> Tensor:
    """Every allowed key, by the fastest kernel PyTorch has for the case."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


@dataclass(frozen=True)
class Window:
    """One start per row and one width. `starts` is an int when all rows begin at one place: then slices are taken."""

    starts: int | Tensor  # (B,) when rows differ
    width: int

    @classmethod
    def of(cls, starts: Tensor, width: int) -> Window:
        """The slice form when all starts are equal. `starts` (B,) should lie on the CPU to spare a device sync."""
        first = int(starts[0])
        return cls(first, width) if bool((starts == first).all()) else cls(starts, width)

    @property
    def stop(self) -> int:
        """The first position no row's window reaches."""
        return (self.starts if isinstance(self.starts, int) else int(self.starts.max())) + self.width

    def positions(self, device: torch.device) -> Tensor:
        """(1, W) or (B, W) positions within each row."""
        here = torch.arange(self.width, device=device)
        if isinstance(self.starts, int):
            return (here + self.starts)[None]
        return self.starts.to(device)[:, None] + here

    def take(self, x: Tensor) -> Tensor:
        """(B, L, ...) to (B, W, ...)."""
        if isinstance(self.starts, int):
            return x[:, self.starts : self.starts + self.width]
        index = self.positions(x.device)
        return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))

    def put(self, x: Tensor, value: Tensor) -> None:
        """Write (B, W) values into (B, L), in place."""
        if isinstance(self.starts, int):
            x[:, self.starts : self.starts + self.width] = value
        else:
            x.scatter_(1, self.positions(x.device), value)

    def widened(self, left: int) -> Window:
        """The same window begun `left` positions earlier."""
        return Window(self.starts - left, self.width + left)


class Store:
    """Keys and values kept from earlier passes, in buffers that are allocated once and written in place."""

    def __init__(self, capacity: int):
        self.capacity = capacity  # positions per row
        self.length = 0  # positions written so far, over all rows
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def clear(self) -> None:
        """Forget what is stored and keep the memory."""
        self.length = 0

    def merge(self, layer: int, k: Tensor, v: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Put fresh (B, G, W, D) keys and values at `window`; return everything known, (B, G, K, D)."""
        if layer not in self.kept:
            size = (k.shape[0], k.shape[1], self.capacity, k.shape[3])
            self.kept[layer] = k.new_zeros(size), v.new_zeros(size)
        self.length = max(self.length, window.stop)
        pair = self.kept[layer]
        for buffer, fresh in zip(pair, (k, v), strict=True):
            if isinstance(window.starts, int):
                buffer[:, :, window.starts : window.stop] = fresh
            else:
                index = window.positions(buffer.device)[:, None, :, None]
                buffer.scatter_(2, index.expand(-1, fresh.shape[1], -1, fresh.shape[3]), fresh)
        return pair[0][:, :, : self.length], pair[1][:, :, : self.length]


@dataclass(frozen=True)
class Context:
    """The argument of one forward pass: never a global, never hidden in a model."""

    window: Window | None = None  # recompute these; None: every position
    rule: Rule | None = None  # None: everything may look at everything
    positions: Tensor | None = None  # (W,) or (B, W) when they are not simply those of the window
    store: Store | None = None  # None: nothing is kept and the window begins at 0
    read: Tensor | None = None  # (N,) flat indices into (B, W): logits come for these alone, as (N, V)
    exact: bool = False  # what is stored of positions outside the window is what computing them again would give
    attend: Attend = field(default=dense)

    def __post_init__(self):
        if isinstance(self.window, slice):  # a slice is accepted for convenience
            if self.window.stop is None:
                raise ValueError("a window needs its stop: Context(window=slice(start, stop))")
            start = self.window.start or 0
            object.__setattr__(self, "window", Window(start, self.window.stop - start))

    def over(self, length: int) -> Window:
        """The window, for a sequence of `length` positions."""
        return self.window or Window(0, length)

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
