"""Decoding runs that are timed, the bare forwards they are compared with, and two samplers written without the library.

Shapes: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unveil.attention import FULL, Attention
from unveil.canvas import Canvas
from unveil.context import EVERYTHING, Context, Store, Window
from unveil.denoiser import Denoiser
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Transformer
from unveil.rules import causal
from unveil.sample import denoise


@dataclass(frozen=True)
class Task:
    """What is written, and by how many predictions."""

    prompt: Tensor  # (B, P)
    length: int  # positions written
    block: int  # positions a block
    steps: int  # predictions a block

    def canvas(self, mask_id: int) -> Canvas:
        return Canvas.answering(self.prompt, self.length, mask_id, torch.arange(len(self.prompt)))


@dataclass(frozen=True)
class Pass:
    """The sizes of one forward: first position, width, how many logits were read, and whether a store was used."""

    start: int
    width: int
    read: int
    stored: bool


class Watched(Denoiser):
    """Passes everything on, and notes the size and the seconds of every pass."""

    def __init__(self, model: Denoiser):
        super().__init__()
        self.model, self.mask_id, self.attention = model, model.mask_id, model.attention
        self.shifted, self.bos_id = model.shifted, model.bos_id
        self.passes: list[Pass] = []
        self.seconds = 0.0

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        window = ctx.over(tokens.shape[1])
        assert isinstance(window.starts, int), "rows of one length begin at one place"
        read = len(tokens) * window.width if ctx.read is None else len(ctx.read)
        self.passes.append(Pass(window.starts, window.width, read, ctx.store is not None))
        began = time.perf_counter()
        logits = self.model(tokens, ctx)
        self.seconds += time.perf_counter() - began
        return logits


@dataclass
class Loop:
    """The library's sampling loop: quotas of the surest tokens, so that the number of forwards is fixed."""

    net: Transformer
    task: Task
    cache: str
    attention: Attention = FULL

    def model(self) -> Denoiser:
        self.net.attention = self.attention
        return Shifted(self.net) if self.attention.leads else self.net

    def run(self) -> Tensor:
        """(B, L) what was written."""
        return self.drive(self.model())

    def drive(self, model: Denoiser) -> Tensor:
        canvas, task = self.task.canvas(model.mask_id), self.task
        deque(denoise(model, canvas, "confidence", cache=self.cache, block=task.block, steps=task.steps), maxlen=0)
        return canvas.tokens

    def watch(self) -> Watched:
        """One run with every pass noted."""
        watched = Watched(self.model())
        self.drive(watched)
        return watched


@dataclass
class Bare:
    """The same passes without a loop around them: the network alone, on as many positions, reading as many logits,
    seeing as many keys, with no mask to build and nothing to choose."""

    net: Transformer
    tokens: Tensor  # (B, L)
    passes: list[Pass]

    @torch.inference_mode()
    def run(self) -> None:
        store = Store(self.tokens.shape[1])
        for one in self.passes:
            window = Window(one.start, one.width)
            ctx = Context(window, store=store if one.stored else None, read=torch.arange(one.read))
            self.net(self.tokens, ctx)


@dataclass
class Plain:
    """A masked diffusion sampler as it is usually published: every step computes every position and float64
    probabilities over the vocabulary for all of them."""

    net: Transformer
    task: Task

    @torch.inference_mode()
    def run(self) -> Tensor:
        task, mask = self.task, self.net.mask_id
        self.net.attention = FULL
        blanks = torch.full((len(task.prompt), task.length), mask)
        x = torch.cat([task.prompt, blanks], dim=1)
        for start in range(task.prompt.shape[1], x.shape[1], task.block):
            stop = min(start + task.block, x.shape[1])
            for step in range(task.steps):
                left = int((x[0, start:stop] == mask).sum())
                if not left:
                    break
                logits = self.net(x)
                logits[..., mask] = -torch.inf
                p = F.softmax(logits.to(torch.float64), dim=-1)
                guess = logits.argmax(-1)
                sure = p.gather(-1, guess[..., None])[..., 0]
                sure = torch.where(x == mask, sure, -torch.inf)
                sure[:, stop:] = -torch.inf
                chosen = sure.topk(-(-left // (task.steps - step)), dim=1).indices
                x.scatter_(1, chosen, guess.gather(1, chosen))
        return x


@dataclass
class Autoregressive:
    """Decoding of the same weights with a key-value cache, one position a forward: nothing shorter exists."""

    net: Transformer
    task: Task
    temperature: float = 0.0  # 0: the likeliest token
    seed: int = 0

    @torch.inference_mode()
    def run(self) -> Tensor:
        task = self.task
        size = task.prompt.shape[1]
        x = torch.cat([task.prompt, task.prompt.new_zeros(len(task.prompt), task.length)], dim=1)
        store, last = Store(x.shape[1]), torch.arange(1, len(x) + 1)
        dice = torch.Generator().manual_seed(self.seed)
        for at in range(size, x.shape[1]):
            window = Window(0, size) if at == size else Window(at - 1, 1)
            logits = self.net(x, Context(window, causal, store=store, read=last * window.width - 1))
            if self.net.mask_id >= 0:
                logits[:, self.net.mask_id] = -torch.inf
            if self.temperature:
                p = (logits.double() / self.temperature).softmax(-1)
                x[:, at] = p.multinomial(1, generator=dice)[:, 0]
            else:
                x[:, at] = logits.argmax(-1)
        return x


def single(loop: Loop) -> Loop:
    """The loop writing one token at a time: the autoregressive mode of a leader model."""
    return replace(loop, task=replace(loop.task, block=1, steps=1))
