"""dLLM-Cache: keep what every layer did, the prompt for long and the answer for a few steps, and redo what moved."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import Canvas
from ..context import Context, Store, Window
from ..nn.transformer import Block, Pass
from . import Cache


@dataclass
class Features(Cache):
    """An approximation for full attention (arXiv 2506.06295).

    Of every layer the keys, the values and what it adds to a position are kept. The prompt is computed anew every
    `prompt` steps and the answer every `response` steps. In between, a layer computes the values of the whole answer,
    and everything else only for the share `rho` of it whose values turned furthest from those kept; the first layer
    computes the whole answer always. The answer begins at a row's last token before its first blank, from which shifted
    models read the first one. Steps are those that a row has a use for, from the beginning of the text.
    """

    ahead = True
    partly = True

    prompt: int = 50  # steps until the prompt is computed anew
    response: int = 6  # the same of the answer
    rho: float = 0.25  # the share of the answer that a layer computes in between
    store: Layers = field(init=False, repr=False)

    def __post_init__(self):
        for name in ("prompt", "response"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number of steps, at least 1")
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is {self.rho}; expected a share of the answer, more than 0 and at most 1")

    def begin(self, canvas: Canvas) -> None:
        self.approximates(canvas)
        self.store = Layers(canvas, self.prompt, self.response, self.rho)

    def plan(self, canvas: Canvas) -> Context:
        self.store.step(canvas)
        return Context(Window(0, canvas.tokens.shape[1]), canvas.rule, store=self.store)


class Layers(Store):
    """What the layers of a network did for each position when they last computed it.

    A layer's attention and feed-forward output are kept as one sum: no position ever has one of them new and one old.
    """

    def __init__(self, canvas: Canvas, prompt: int, response: int, rho: float):
        super().__init__(canvas.tokens.shape[1])
        device = canvas.tokens.device
        starts = (canvas.first - 1).clamp(min=0)
        sizes = canvas.lengths - starts
        self.prompt, self.response = prompt, response
        self.answer = Window.of(starts, int(sizes.max()))
        place = torch.arange(self.capacity, device=device)
        self.given = place < starts.to(device)[:, None]  # (B, L)
        self.exists = place < canvas.lengths.to(device)[:, None]  # (B, L)
        self.sizes = sizes.to(device)  # (B,) positions of the answer
        self.share = (self.sizes * rho).long().clamp(min=1)  # (B,) of them computed in between
        self.added: dict[int, Tensor] = {}  # (B, L, E) by layer
        self.origin = torch.zeros_like(canvas.taken)  # (B,) steps before the clock was last set to 0
        self.astray = torch.zeros_like(self.origin, dtype=torch.bool)  # (B,) rows read when nothing of theirs was open

    def step(self, canvas: Canvas) -> None:
        """What a new step computes, before it is known which rows it reads.

        How long a finished row is still read depends on its company, so what it kept meanwhile is not used further.
        """
        inside = (canvas.block.take(canvas.tokens) == canvas.mask_id) & ~canvas.block.take(canvas.given)
        self.open = inside.any(1)
        self.origin = torch.where(self.open & self.astray, canvas.taken, self.origin)
        self.astray = self.astray & ~self.open
        self.clock = canvas.taken - self.origin

    def begin(self, read: Tensor | None) -> None:
        """What this pass computes. A row of which nothing is read waits, and what is kept of it stays as it is."""
        rows = torch.ones_like(self.open)
        if read is not None:
            rows = torch.zeros_like(rows).index_fill(0, read // self.capacity, True)
        self.astray = self.astray | (rows & ~self.open)
        prompt, answer = rows & (self.clock % self.prompt == 0), rows & (self.clock % self.response == 0)
        self.partly = rows & ~answer  # (B,) rows of whose answer a share is computed
        self.whole = self.exists & torch.where(self.given, prompt[:, None], answer[:, None])  # (B, L) in every layer
        fixed = self.whole.sum(1)
        numbers = [
            (fixed + self.partly * self.share).max(),
            (fixed + self.partly * self.sizes).max(),
            (self.whole | ~self.exists).all().long(),
            self.partly.any().long(),
        ]
        self.width, self.widest, everything, some = torch.stack(numbers).tolist()
        self.everything, self.some = bool(everything), bool(some)

    def through(self, layer: Block, x: Tensor, run: Pass, read: Tensor | None) -> Tensor:
        number = layer.attention.layer
        if number == 0:
            self.begin(run.ctx.read)
        if number not in self.added:
            self.added[number] = torch.zeros_like(x)
        added = self.added[number]
        if self.everything:
            y = layer(x, run)
            added.copy_(y - x)
        else:
            window = self.window(layer, x)
            here = window.take(x)
            new = layer(here, run.at(window))
            window.put(added, new - here)
            y = x + added
            window.put(y, new)
        return y if read is None else y.flatten(0, 1).index_select(0, read)

    def window(self, layer: Block, x: Tensor) -> Window:
        """The positions for which a layer is computed."""
        if not self.some:
            return Window.scattered(self.whole, self.width)
        if layer.attention.layer == 0:
            rest = self.partly[:, None] & self.exists & ~self.given
            return Window.scattered(self.whole | rest, self.widest)
        return Window.scattered(self.whole | self.turned(layer, x), self.width)

    def turned(self, layer: Block, x: Tensor) -> Tensor:
        """(B, L) the share of each answer whose values turned furthest; all values of the answer are replaced."""
        window, kept = self.answer, self.kept[layer.attention.layer][1].transpose(1, 2)
        old, new = window.take(kept), layer.attention.values(layer.norm_1(window.take(x)))
        exists = window.take(self.exists) & self.partly[:, None]
        # The distance of unit vectors ranks as their cosine does, and rounding does not drown what is small.
        distance = (direction(new) - direction(old)).square().sum(-1).masked_fill(~exists, -torch.inf)
        window.put(kept, torch.where(self.partly[:, None, None, None], new, old))
        order = distance.sort(dim=1, descending=True, stable=True).indices
        within = torch.arange(order.shape[1], device=order.device) < self.share[:, None]
        chosen = torch.zeros_like(exists).scatter_(1, order, within)
        found = torch.zeros_like(self.exists)
        window.put(found, chosen & exists)
        return found


def direction(values: Tensor) -> Tensor:
    """(B, W, G, D) to unit vectors (B, W, G D) in float32."""
    return F.normalize(values.flatten(2).float(), dim=-1)
