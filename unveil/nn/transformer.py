"""The one backbone. GPT-2, Pythia, Llama, Qwen, Gemma, LLaDA and all others differ only in the fields of `Shape`.

Dimension letters: B batch, W window, K keys, E width, H heads, G key-value heads, D head size, V vocabulary,
N rows read, P 1 or B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import Attention
from ..context import EVERYTHING, Context, Window
from ..denoiser import Denoiser
from ..rules import both
from .adapters import Adapter
from .moe import Experts, Mixture
from .norm import RMSNorm

Turn = tuple[Tensor, Tensor]
"""Cosines and signed sines of the rotary angles, (P, W, 1, D) each."""

Sight = tuple[Tensor | None, bool]
"""(P, 1, W, K) bool, who looks at whom, or None; and whether that is simply causal."""


@dataclass(frozen=True)
class Stretch:
    """How rotary frequencies were changed for a longer context: all alike, or by how often they turn in the old one.

    linear  all divided by the factor
    llama3  Llama 3: what turns `high` times or more stays, `low` times or less is divided, between them by turns
    yarn    YaRN (2309.00071, 3.2 and 3.4): the same, between them by dimension, and cosines and sines times `gain`
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192  # context before stretching, in tokens
    gain: float = 1.0
    whole: bool = True  # do YaRN's limits lie at whole dimensions?


@dataclass(frozen=True)
class Gains:
    """Constants that some networks multiply by."""

    embedding: float = 1.0
    residual: float = 1.0  # what a layer adds
    queries: float = 1.0  # beside the usual 1 / sqrt(D)
    logits: float = 1.0


Activation = Literal["silu", "gelu", "gelu_tanh"]
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


@dataclass(frozen=True)
class Shape:
    """All that distinguishes one network from another."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int  # width of the feed-forward network
    head_size: int
    mask_id: int = -1
    context: int = 2048  # positions it was made for
    theta: float = 1e4
    stretch: Stretch | None = None
    eps: float = 1e-6
    biases: frozenset[str] = frozenset()  # of "qkv", "out", "mlp"
    qk_norm: Literal["head", "all"] | None = None  # queries and keys: per head (Qwen3) or over all heads (OLMoE)
    clip: float | None = None  # bound on queries, keys and values (OLMoE)
    norm: Literal["rms", "layer"] = "rms"  # layer: mean taken off, and with a bias (GPT-2)
    norm_offset: float = 0.0  # added to the weights of root-mean-square norms (Gemma)
    order: Literal["pre", "post", "both", "parallel"] = "pre"  # see `Block`
    activation: Activation = "silu"
    gated: bool = True  # is the feed-forward network multiplied by an activated gate?
    learned: bool = False  # absolute positions are learned and added to the embedding (GPT-2); nothing is turned
    turned: int | None = None  # the first so many dimensions of a head are turned by the position; None: all
    unturned: frozenset[int] = frozenset()  # layers that are told no positions (SmolLM3)
    tied: bool = False  # the head's weight is the embedding
    sliding: int | None = None  # positions further apart than this do not see each other (Mistral)
    far: frozenset[int] = frozenset()  # layers that see everything all the same (Gemma 3)
    theta_near: float | None = None  # of the others, which are not stretched then; None: as in all
    gains: Gains = Gains()
    mixture: Mixture | None = None


def frequencies(s: Shape) -> Tensor:
    """(D / 2,) rotary angle per position, float32; of the dimensions that are turned."""
    size = s.turned or s.head_size
    steps = torch.arange(0, size, 2, dtype=torch.float32, device="cpu")
    freq = 1.0 / s.theta ** (steps / size)
    if s.stretch is None:
        return freq
    slow = freq / s.stretch.factor
    if s.stretch.kind == "linear":
        return slow
    if s.stretch.kind == "yarn":
        return yarn(freq, slow, s.stretch, s.theta)
    turns = s.stretch.original * freq / (2 * math.pi)
    smooth = ((turns - s.stretch.low) / (s.stretch.high - s.stretch.low)).clamp(0, 1)
    return (1 - smooth) * slow + smooth * freq


def yarn(freq: Tensor, slow: Tensor, stretch: Stretch, theta: float) -> Tensor:
    """(D / 2,) frequencies between the old and the stretched ones."""
    size = 2 * len(freq)
    turns = (stretch.high, stretch.low)
    first, last = (size * math.log(stretch.original / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in turns)
    if stretch.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    width = last - first or 0.001
    share = ((torch.arange(len(freq), dtype=torch.float32, device=freq.device) - first) / width).clamp(0, 1)
    return share * slow + (1 - share) * freq


def rotate(x_BWHD: Tensor, turn: Turn) -> Tensor:
    """Rotary position embedding, halves paired: (a, b) to (a cos - b sin, b cos + a sin).

    Dimensions beyond those that there are angles for stay as they are.
    """
    cos, sin = turn
    size = cos.shape[-1]
    if size < x_BWHD.shape[-1]:
        return torch.cat([rotate(x_BWHD[..., :size], turn), x_BWHD[..., size:]], -1)
    return torch.addcmul(x_BWHD * cos, x_BWHD.roll(size // 2, -1), sin)


@dataclass(frozen=True)
class Pass:
    """What every layer of one forward pass shares."""

    ctx: Context
    window: Window
    turn: Turn | None
    mask: Tensor | None
    causal: bool
    near: Pass | None = None  # the same for layers that see less far, where only some do

    def at(self, window: Window) -> Pass:
        """The same pass over scattered positions of its window, which is the whole sequence."""
        assert window.at is not None
        rows, turn, mask = len(window.at), self.turn, self.mask
        if turn is not None:
            cos, sin = (window.take(part.expand(rows, -1, -1, -1)) for part in turn)
            turn = cos, sin
        if mask is not None and mask.shape[2] > 1:
            mask = window.take(mask.transpose(1, 2).expand(rows, -1, -1, -1)).transpose(1, 2)
        near = self.near and self.near.at(window)
        return replace(self, window=window, turn=turn, mask=mask, near=near)


class SelfAttention(nn.Module):
    """Multi-head attention with grouped keys and values, under the pass's rule and store."""

    def __init__(self, s: Shape, layer: int):
        super().__init__()
        self.layer, self.head_size, self.clip, self.qk_norm = layer, s.head_size, s.clip, s.qk_norm
        self.gain, self.turned, self.near = s.gains.queries, layer not in s.unturned, layer not in s.far
        queries, keys = s.heads * s.head_size, s.kv_heads * s.head_size
        self.q = nn.Linear(s.width, queries, bias="qkv" in s.biases)
        self.k = nn.Linear(s.width, keys, bias="qkv" in s.biases)
        self.v = nn.Linear(s.width, keys, bias="qkv" in s.biases)
        self.out = nn.Linear(queries, s.width, bias="out" in s.biases)
        if s.qk_norm:
            self.q_norm = RMSNorm(queries if s.qk_norm == "all" else s.head_size, s.eps, s.norm_offset)
            self.k_norm = RMSNorm(keys if s.qk_norm == "all" else s.head_size, s.eps, s.norm_offset)

    def values(self, x_BWE: Tensor) -> Tensor:
        """(B, W, G, D)."""
        v = self.v(x_BWE)
        if self.clip is not None:
            v = v.clamp(-self.clip, self.clip)
        return v.unflatten(-1, (-1, self.head_size))

    def forward(self, x_BWE: Tensor, p: Pass) -> Tensor:
        if self.near and p.near is not None:
            p = p.near
        B, W, _ = x_BWE.shape
        q, k, v = self.q(x_BWE), self.k(x_BWE), self.values(x_BWE)
        if self.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.clip is not None:
            q, k = (y.clamp(-self.clip, self.clip) for y in (q, k))
        q, k = (y.view(B, W, -1, self.head_size) for y in (q, k))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if p.turn is not None and self.turned:
            q, k = rotate(q, p.turn), rotate(k, p.turn)
        if self.gain != 1:
            q = q * self.gain
        q_BHWD, k_BGKD, v_BGKD = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if p.ctx.store is not None:
            k_BGKD, v_BGKD = p.ctx.store.merge(self.layer, k_BGKD, v_BGKD, p.window)
        y_BHWD = p.ctx.attend(q_BHWD, k_BGKD, v_BGKD, p.mask, p.causal, self.layer)
        return self.out(y_BHWD.transpose(1, 2).reshape(B, W, -1))


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, s: Shape, hidden: int):
        super().__init__()
        bias, self.activate = "mlp" in s.biases, ACTIVATIONS[s.activation]
        self.gate = nn.Linear(s.width, hidden, bias) if s.gated else None
        self.up = nn.Linear(s.width, hidden, bias)
        self.down = nn.Linear(hidden, s.width, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activate(self.up(x)))
        return self.down(self.activate(self.gate(x)) * self.up(x))


def normaliser(s: Shape) -> nn.Module:
    return nn.LayerNorm(s.width, s.eps) if s.norm == "layer" else RMSNorm(s.width, s.eps, s.norm_offset)


class Block(nn.Module):
    """Attention, then a feed-forward network, each added to its input, and normalised by the order of the shape.

    pre       f(norm(x)), as almost all networks do
    post      norm(f(x)) (OLMo 2)
    both      norm(f(norm(x))) (Gemma 3)
    parallel  as pre, but both parts read the block's input (GPT-NeoX)
    """

    def __init__(self, s: Shape, layer: int):
        super().__init__()
        before, after = s.order != "post", s.order in ("post", "both")
        self.norm_1, self.norm_2 = (normaliser(s) if before else nn.Identity() for _ in range(2))
        self.after_1, self.after_2 = (normaliser(s) if after else nn.Identity() for _ in range(2))
        self.parallel, self.gain = s.order == "parallel", s.gains.residual
        self.attention = SelfAttention(s, layer)
        if s.mixture and layer not in s.mixture.dense:
            shared = FeedForward(s, s.mixture.shared) if s.mixture.shared else None
            self.mlp = Experts(s.width, s.mixture, shared)
        else:
            self.mlp = FeedForward(s, s.hidden)

    def forward(self, x_BWE: Tensor, p: Pass, read: Tensor | None = None) -> Tensor:
        """(B, W, E), or (N, E) when `read` names the rows that somebody will look at."""
        y = x_BWE.add(self.after_1(self.attention(self.norm_1(x_BWE), p)), alpha=self.gain)
        x = x_BWE if self.parallel else y
        if read is not None:
            x, y = (part.flatten(0, 1).index_select(0, read) for part in (x, y))
        return y.add(self.after_2(self.mlp(self.norm_2(x))), alpha=self.gain)


class Embedding(nn.Embedding):
    """Rows of a table, times a constant."""

    gain = 1.0

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input)
        return found if self.gain == 1 else found * self.gain


class Transformer(Denoiser):
    """Tokens in, logits out. It knows nothing of noise, blocks or decoding."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s, self.mask_id, self.context_length = s, s.mask_id, s.context
        if s.mask_id < 0:
            self.attention = Attention("causal")  # without a mask token it can only be an autoregressive parent
        self.family = ""  # whose names its checkpoint uses
        self.config: dict = {}  # the parent's config.json
        self.adapter: Adapter | None = None  # what is trained, where these weights are frozen
        self.fixed: Callable[[Tensor, Context, Window], Tensor | None] | None = None  # see nn.fixed
        self.checkpointing = False  # recompute activations in the backward pass: less memory, a third more time
        self.embed = Embedding(s.vocab, s.width)
        self.embed.gain = s.gains.embedding
        if s.learned:
            self.places = nn.Embedding(s.context, s.width)
        self.blocks = nn.ModuleList(Block(s, i) for i in range(s.layers))
        self.norm = normaliser(s)
        self.head = nn.Linear(s.width, s.vocab, bias=False)
        self.tie()
        # Do only some of the layers see less far, or are positions told otherwise there?
        self.mixes = s.sliding is not None and (bool(s.far) or s.theta_near is not None)
        self.near = s if s.theta_near is None else replace(s, theta=s.theta_near, stretch=None)
        self.freq = frequencies(s)  # no buffer: it must stay float32 whatever the weights become
        self.freq_near = frequencies(self.near)
        self.initialise()

    def tie(self) -> None:
        """Make head and embedding one parameter again, where they should be."""
        if self.s.tied:
            self.head.weight = self.embed.weight

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Random weights as GPT-2 draws them: N(0, 0.02), what ends in the residual stream less by sqrt(2 layers)."""
        for name, p in self.named_parameters():
            if p.dim() == 1:
                nn.init.constant_(p, 0 if name.endswith("bias") else 1 - self.s.norm_offset)
                continue
            nn.init.normal_(p, std=0.02, generator=generator)
            ends = p if name.endswith((".out.weight", ".down.weight")) else p[2] if ".mlp.weights." in name else None
            if ends is not None:
                with torch.no_grad():
                    ends.mul_((2 * self.s.layers) ** -0.5)

    def turn(self, positions_PW: Tensor, dtype: torch.dtype, near: bool = False) -> Turn:
        """Rotary angles, once for all layers, or for all that see less far."""
        if self.freq.device != positions_PW.device:
            self.freq, self.freq_near = (freq.to(positions_PW.device) for freq in (self.freq, self.freq_near))
        s, freq = (self.near, self.freq_near) if near else (self.s, self.freq)
        angle = (positions_PW[..., None].float() * freq)[:, :, None]
        cos, sin = angle.cos(), angle.sin()
        if s.stretch is not None and s.stretch.gain != 1:
            cos, sin = cos * s.stretch.gain, sin * s.stretch.gain
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)

    def look(self, ctx: Context, window: Window, positions_PW: Tensor, near: bool = False) -> Sight:
        """The mask of the pass, narrowed to the sliding window of all layers, or, `near`, of those that have one."""
        known = max(window.stop, ctx.store.length if ctx.store else 0)
        far = self.s.sliding if near or not self.mixes else None
        if far is None or known <= far or ctx.apart:
            return ctx.look(window, positions_PW.device)
        if ctx.positions is None:
            return replace(ctx, rule=both(ctx.rule, lambda q, k: (q - k).abs() < far)).look(window, positions_PW.device)
        if ctx.store is not None:
            raise ValueError("sliding attention with a store and positions of their own: give one or the other")
        beside = (positions_PW[:, :, None] - positions_PW[:, None]).abs() < far
        return replace(ctx, rule=both(ctx.rule, lambda q, k: beside)).look(window, positions_PW.device)

    def run(self, x_BWE: Tensor, ctx: Context = EVERYTHING, window: Window | None = None) -> Tensor:
        """All blocks: (B, W, E), or (N, E) under `ctx.read`; not yet normalised."""
        window = window or ctx.over(x_BWE.shape[1])
        positions = window.positions(x_BWE.device) if ctx.positions is None else ctx.positions.to(x_BWE.device)
        positions = positions if positions.dim() == 2 else positions[None]
        if self.s.learned and ctx.positions is None and window.stop > self.s.context:
            raise ValueError(f"{window.stop} positions, but this network has learned {self.s.context}")
        x_BWE, turn = self.placed(x_BWE, positions)
        near = None
        if self.mixes:
            other = None if turn is None else self.turn(positions, x_BWE.dtype, near=True)
            near = Pass(ctx, window, other, *self.look(ctx, window, positions, near=True))
        return self.layers(x_BWE, Pass(ctx, window, turn, *self.look(ctx, window, positions), near))

    def placed(self, x_BWE: Tensor, positions_PW: Tensor) -> tuple[Tensor, Turn | None]:
        """Embedded tokens told where they stand, by learned positions or by the angles that layers turn by."""
        if self.s.learned:
            return x_BWE + self.places(positions_PW), None
        return x_BWE, self.turn(positions_PW, x_BWE.dtype)

    def layers(self, x_BWE: Tensor, p: Pass) -> Tensor:
        """(B, W, E), or (N, E) under the pass's `read`; not yet normalised."""
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            read = p.ctx.read if block is self.blocks[-1] else None
            if p.ctx.store is not None:
                x_BWE = p.ctx.store.through(block, x_BWE, p, read)
            else:
                x_BWE = checkpoint(block, x_BWE, p, read, use_reentrant=False) if again else block(x_BWE, p, read)
        return x_BWE

    def body(self, x_BWE: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        """Blocks and final norm, for networks whose input is not tokens: (B, W, E) under `ctx.window` to the same."""
        return self.norm(self.run(x_BWE, ctx))

    def hidden(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        """(B, L) to final normalised states (B, W, E), or (N, E) under `ctx.read`."""
        ctx = ctx if ctx.stale is None else ctx.narrowed()
        window = ctx.over(tokens.shape[1])
        if self.fixed is not None and (found := self.fixed(tokens, ctx, window)) is not None:
            return found
        return self.norm(self.run(self.embed(window.take(tokens)), ctx, window))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., E) to (..., V)."""
        gain = self.s.gains.logits
        return self.head(hidden if gain == 1 else hidden * gain)

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        return self.logits(self.hidden(tokens, ctx))
