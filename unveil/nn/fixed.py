"""Passes of one width as one compiled graph: on CUDA replayed at once, where otherwise every kernel is launched."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..context import Context, Store, Window, dense
from ..denoiser import Denoiser
from .grow import bare
from .transformer import Pass, Transformer

WIDEST = 64  # positions; wider passes, as of prompts, gain nothing and come in too many widths
SHAPES = 8  # graphs of one network; what would need more is computed as before
STEP = 128  # capacities are multiples of it, so that texts of about one length share graphs
Backend = str | Callable


class Kept(nn.Module):
    """Keys and values of every layer at addresses that stay, (B, G, capacity, D) each."""

    def __init__(self, network: Transformer, rows: int, capacity: int):
        super().__init__()
        s, weight = network.s, network.embed.weight
        for layer in range(s.layers):
            for name in ("keys", "values"):
                empty = weight.new_zeros(rows, s.kv_heads, capacity, s.head_size, requires_grad=False)
                self.register_buffer(f"{name}_{layer}", empty, persistent=False)
        self.rows, self.capacity, self.layers = rows, capacity, s.layers

    def pairs(self) -> dict[int, tuple[Tensor, Tensor]]:
        """As a store holds them."""
        return {
            layer: (self.get_buffer(f"keys_{layer}"), self.get_buffer(f"values_{layer}"))
            for layer in range(self.layers)
        }

    def clear(self) -> None:
        """What is masked out counts nothing only while it is finite."""
        for buffer in self.buffers():
            buffer.zero_()


class Fixed:
    """What a network's `fixed` is: computes a pass with a store, or declines it.

    Sizes are fixed, so that nothing is compiled or captured twice: a pass looks at the whole capacity of its store
    under a mask, and where it writes is a tensor. `torch.compile` makes CUDA graphs of it (mode reduce-overhead); on a
    CPU it fuses what lies between the matrix products.
    """

    def __init__(self, network: Transformer, backend: Backend = "inductor"):
        """`backend` as in `torch.compile`. ValueError for a mixture of experts, and where layers have several masks."""
        if network.s.mixture:
            raise ValueError(
                "experts take as many tokens as choose them, so their passes have no fixed sizes to compile"
            )
        if network.mixes:
            raise ValueError("some layers see less far than others, and a compiled pass is handed one mask for all")
        mode = "reduce-overhead" if backend == "inductor" else None
        self.network = network
        self.compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend, mode=mode)
        self.kept: Kept | None = None
        self.holder: weakref.ref[Store] | None = None  # the one store that has the buffers now
        self.shapes: set[tuple[int, int, int]] = set()  # rows, width, capacity

    def __call__(self, tokens: Tensor, ctx: Context, window: Window) -> Tensor | None:
        """(B, L) tokens to normalised states, (B, W, E) or (N, E) under `ctx.read`; None: compute it as usual."""
        store, rows = ctx.store, len(tokens)
        if store is None or type(store) is not Store or torch.is_grad_enabled():
            return None
        if not store.kept:
            self.lend(store, rows)
        if not self.takes(store, ctx, window):
            return None
        kept = self.kept
        assert kept is not None
        shape = rows, window.width, kept.capacity
        if shape not in self.shapes and len(self.shapes) == SHAPES:
            return None
        self.shapes.add(shape)
        positions = window.positions(tokens.device).expand(rows, -1).contiguous()
        mask = self.mask(ctx, window, positions, kept.capacity)
        store.length = max(store.length, window.stop)
        torch.compiler.cudagraph_mark_step_begin()  # what the last replay gave is used up
        found = self.compiled(self.network, kept, window.take(tokens).contiguous(), positions, mask)
        return found.clone() if ctx.read is None else found.flatten(0, 1).index_select(0, ctx.read)

    def lend(self, store: Store, rows: int) -> None:
        """Give a new store the buffers. One that still has them goes on with a copy, and is computed as usual."""
        before = None if self.holder is None else self.holder()
        if before is not None:
            before.kept = {layer: (k.clone(), v.clone()) for layer, (k, v) in before.kept.items()}
        capacity = -(-store.capacity // STEP) * STEP
        if self.kept is None or (self.kept.rows, self.kept.capacity) != (rows, capacity):
            self.kept = Kept(self.network, rows, capacity)
        self.kept.clear()
        store.kept, self.holder = self.kept.pairs(), weakref.ref(store)

    def takes(self, store: Store, ctx: Context, window: Window) -> bool:
        mine = self.holder is not None and self.holder() is store and store.place is None
        begun = store.length > 0  # before that a pass is a prompt's
        plain = ctx.attend is dense and not ctx.apart and ctx.positions is None and ctx.stale is None
        limit = self.network.s.context if self.network.s.learned else window.stop
        return mine and begun and plain and window.at is None and window.width <= WIDEST and window.stop <= limit

    def mask(self, ctx: Context, window: Window, positions: Tensor, capacity: int) -> Tensor:
        """(B, 1, W, capacity) who looks at whom; nobody at what is not known."""
        assert ctx.store is not None
        known = max(window.stop, ctx.store.length)
        allowed, causal = self.network.look(ctx, window, positions)
        assert not causal, "only a pass over everything known is simply causal, and that is a prompt's"
        rows, width = positions.shape
        mask = torch.zeros(rows, 1, width, capacity, dtype=torch.bool, device=positions.device)
        mask[..., :known] = True if allowed is None else allowed
        return mask


def step(network: Transformer, kept: Kept, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """(B, W) tokens at (B, W) positions to normalised states (B, W, E); keys and values are written into `kept`."""
    store = Store(kept.capacity)
    store.kept, store.length = kept.pairs(), kept.capacity
    window = Window(positions[:, 0], tokens.shape[1], at=positions, end=kept.capacity)
    x, turn = network.placed(network.embed(tokens), positions)
    return network.norm(network.layers(x, Pass(Context(store=store), window, turn, mask, False)))


def fix(model: Denoiser, backend: Backend = "inductor") -> None:
    """Have passes of few positions with a store compiled, in whatever wraps the network."""
    network = bare(model)
    network.fixed = Fixed(network, backend)
