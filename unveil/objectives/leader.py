"""The leader layout: committed text stays autoregressive, an open block behind its first token is diffused.

Blocks of n + 1 positions. The first, the leader, is never hidden and is predicted by the clean copy as the parent
would; the others are hidden in the noisy copy and each is read one position to its left, which lies in the same block.
At n = 0 this is the parent's own loss; the block grows from there. Streams: z the noisy copy, c the clean one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import rules
from ..context import Context
from ..denoiser import Denoiser
from ..nn import reading
from ..nn.alignment import apartness, divergence, listening
from ..noise import uniform
from ..processes import MIXTURE, ROW_STEP, Draw, Estimator
from . import Batch, Loss, autoregressive, masked
from .block import in_streams, two_streams
from .masked import diffusible, hide


@dataclass(frozen=True)
class Reading:
    """Which tokens one pass over [z | c] is asked about, as flat indices into (B, L)."""

    hidden: Tensor  # read from z
    leaders: Tensor  # read from c
    others: Tensor  # read from c for the autoregressive loss alone


def ask(model: Denoiser, batch: Batch, drawn: Draw, n: int, others: bool) -> tuple[Tensor, Reading]:
    """(N, V) logits at hidden tokens, leaders and, if wanted, `others`, in this order; and which these are."""
    length, targets, leads = batch.tokens.shape[1], batch.targets, leading(batch, n)
    asked = (drawn.hit, targets & leads, targets & ~leads & others)
    which = Reading(*(rows.flatten().nonzero()[:, 0] for rows in asked))
    tokens, ctx = two_streams(batch, drawn, model.mask_id, n + 1, token_causal=token_causal(model))
    clean = torch.cat([which.leaders, which.others])
    read = torch.cat([in_streams(which.hidden, length, 0), in_streams(clean, length, 1)])
    return reading.logits(model, tokens, ctx, read - reading.lag(model)), which


def token_causal(model: Denoiser) -> bool:
    """Is committed text read token by token? A shifted block model reads it block by block (Fast-dLLM v2)."""
    return model.attention.kind != "block"


def leading(batch: Batch, n: int) -> Tensor:
    """(L,) True at the first of every n + 1 positions."""
    return torch.arange(batch.tokens.shape[1], device=batch.tokens.device) % (n + 1) == 0


def draw_followers(
    batch: Batch, n: int, estimator: Estimator, eps: float = 1e-3, *, turn: int = 0, turns: int = 1
) -> Draw:
    """What to hide among the targets that do not lead a block of n + 1 positions."""
    return hide(batch, n + 1, batch.targets & ~leading(batch, n), estimator, eps, turn=turn, turns=turns)


def nats(model: Denoiser, batch: Batch, drawn: Draw, n: int) -> Tensor:
    """(B,) bound: leaders given what is before them, the others given the clean past and their noisy block."""
    found, which = ask(model, batch, drawn, n, others=False)
    asked = torch.cat([which.hidden, which.leaders])
    weight = torch.cat([drawn.weight.flatten()[which.hidden], torch.ones_like(which.leaders, dtype=torch.float32)])
    return reading.by_row(reading.surprise(found, batch.tokens.flatten()[asked]) * weight, asked, batch.tokens.shape)


@dataclass
class Leader:
    """From a next-token network, bare or shifted, to a diffusion model that is still that network when read causally.

    n          tokens diffused in a block, behind its leader
    grow       share of training over which n grows 1, 2, 4, ... in equal stages; 0: n from the start
    full       share of steps, after that, in which the whole row is one block under full attention (for infilling)
    ar         weight of next-token prediction at the clean copy's other targets: keeps the autoregressive mode
    kl         weight of KL(parent || model) at hidden tokens; constant over the first half, then falling to 0
    align      weight of 1 - cosine between the parent's states and the model's, at hidden tokens, averaged over layers;
               falling to 0 at 60 % of training
    estimator  count or bernoulli, as in `masked`; eps is the smallest t of `bernoulli`

    `parent` is the frozen autoregressive network, which kl and align need.
    """

    n: int = 16
    grow: float = 0.4
    full: float = 0.25
    ar: float = 0.3
    kl: float = 0.0
    align: float = 0.0
    estimator: Estimator = "count"
    eps: float = 1e-3
    parent: Denoiser | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.n < 0:
            raise ValueError(f"leader diffuses n >= 0 tokens in a block, got n={self.n}")
        if not 0 <= self.grow <= 1 or not 0 <= self.full <= 1:
            raise ValueError(f"leader's grow and full are shares from 0 to 1, got grow={self.grow}, full={self.full}")

    @property
    def bound(self) -> bool:
        """Only without the terms that are added to it."""
        return not (self.ar or self.kl or self.align)

    def size(self, progress: float) -> int:
        """Tokens diffused in a block at this point of training."""
        sizes = [2**i for i in range(self.n.bit_length()) if 2**i < self.n] + [self.n]
        return self.n if progress >= self.grow else sizes[int(progress / self.grow * len(sizes))]

    def whole(self, batch: Batch) -> bool:
        """Is the row one block in this step? Evenly spread over steps; every rank and micro-batch decides the same."""
        offset = float(uniform(batch.seed, MIXTURE))
        return batch.progress >= self.grow and (offset + batch.step * ROW_STEP) % 1 < self.full

    def __call__(self, model: Denoiser, batch: Batch) -> Loss:
        n, targets = self.size(batch.progress), batch.targets
        if n == 0:
            return autoregressive.Autoregressive()(model, batch)
        diffusible(model, batch)
        if self.whole(batch):
            drawn = hide(batch, None, targets, self.estimator, self.eps)
            total = masked.nats(model, batch, drawn, back=reading.lag(model)).sum()
            return Loss(total, targets.sum(), {"whole": total.detach()})
        return self.blocks(model, batch, n)

    def blocks(self, model: Denoiser, batch: Batch, n: int) -> Loss:
        """One pass over [z | c]."""
        drawn = draw_followers(batch, n, self.estimator, self.eps)
        align = self.align * max(0.0, 1 - batch.progress / 0.6)
        with listening(model) if align else nullcontext([]) as mine:
            found, which = ask(model, batch, drawn, n, others=self.ar > 0)
        asked = torch.cat([which.hidden, which.leaders, which.others])
        surprise = reading.surprise(found, batch.tokens.flatten()[asked])
        hidden, leaders, others = surprise.split([len(which.hidden), len(which.leaders), len(which.others)])
        weight = drawn.weight.flatten()[which.hidden]
        bound = (hidden * weight).sum() + leaders.sum()
        total, parts = bound, {"diffusion": bound.detach()}
        if self.ar:
            total = total + self.ar * others.sum()
            parts["ar"] = (others.sum() + leaders.sum()).detach()
        for name, share, apart in self.lessons(batch, which.hidden, found, mine, model.mask_id, align):
            term = (apart * weight).sum()
            total = total + share * term
            parts[name] = term.detach()
        return Loss(total, batch.targets.sum(), parts)

    def lessons(
        self, batch: Batch, hidden: Tensor, found: Tensor, mine: list[Tensor], mask_id: int, align: float
    ) -> Iterator[tuple[str, float, Tensor]]:
        """The name, weight and (N,) distances from the parent at `hidden` of every term that counts now."""
        kl = self.kl * min(1.0, 2 - 2 * batch.progress)
        if not kl and not align:
            return
        if self.parent is None:
            raise ValueError("leader's kl and align compare with the frozen parent: set the objective's `parent`")
        ctx = Context(rule=reading.apart(batch.documents, rules.causal))
        with torch.no_grad(), listening(self.parent) if align else nullcontext([]) as theirs:
            taught = reading.logits(self.parent, batch.tokens, ctx, hidden - reading.lag(self.parent))
        if kl:
            yield "kl", kl, divergence(taught, found[: len(hidden)], mask_id)
        if align:
            length = batch.tokens.shape[1]
            noisy = states_at(mine, in_streams(hidden, length, 0) - 1, len(hidden))
            yield "align", align, apartness(states_at(theirs, hidden - 1, len(hidden)), noisy)


def states_at(states: list[Tensor], rows: Tensor, count: int) -> list[Tensor]:
    """(count, E) per layer: `rows` of all but the last, which already holds what was read, these first."""
    return [layer.flatten(0, 1)[rows] for layer in states[:-1]] + [states[-1][:count]]
