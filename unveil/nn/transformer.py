"""The one backbone. GPT-2, Llama, Mistral, Qwen, OLMoE, LLaDA, Dream and SDAR differ only in the fields of `Shape`.

Dimension letters: B batch, W window, K keys, E width, H heads, G key-value heads, D head size, V vocabulary,
N rows read, P 1 or B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Stretch:
    """How rotary frequencies were changed for a longer context: `linear`, or Llama 3's rule by wavelength."""

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192  # context before stretching, in tokens


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
    classic: bool = False  # GPT-2: LayerNorm, learned absolute positions, GELU, biases everywhere
    tied: bool = False  # the head's weight is the embedding
    sliding: int | None = None  # positions further apart than this do not see each other (Mistral)
    mixture: Mixture | None = None


def frequencies(s: Shape) -> Tensor:
    """(D / 2,) rotary angle per position, float32."""
    steps = torch.arange(0, s.head_size, 2, dtype=torch.float32, device="cpu")
    freq = 1.0 / s.theta ** (steps / s.head_size)
    if s.stretch is None:
        return freq
    slow = freq / s.stretch.factor
    if s.stretch.kind == "linear":
        return slow
    # Llama 3: short wavelengths stay, long ones are stretched, those between are interpolated
    turns = s.stretch.original * freq / (2 * math.pi)
    smooth = ((turns - s.stretch.low) / (s.stretch.high - s.stretch.low)).clamp(0, 1)
    return (1 - smooth) * slow + smooth * freq


def rotate(x_BWHD: Tensor, turn: Turn) -> Tensor:
    """Rotary position embedding, halves paired: (a, b) to (a cos - b sin, b cos + a sin)."""
    cos, sin = turn
    return torch.addcmul(x_BWHD * cos, x_BWHD.roll(x_BWHD.shape[-1] // 2, -1), sin)


@dataclass(frozen=True)
class Pass:
    """What every layer of one forward pass shares."""

    ctx: Context
    window: Window
    turn: Turn | None
    mask: Tensor | None
    causal: bool

    def at(self, window: Window) -> Pass:
        """The same pass over scattered positions of its window, which is the whole sequence."""
        assert window.at is not None
        rows, turn, mask = len(window.at), self.turn, self.mask
        if turn is not None:
            cos, sin = (window.take(part.expand(rows, -1, -1, -1)) for part in turn)
            turn = cos, sin
        if mask is not None and mask.shape[2] > 1:
            mask = window.take(mask.transpose(1, 2).expand(rows, -1, -1, -1)).transpose(1, 2)
        return replace(self, window=window, turn=turn, mask=mask)


class SelfAttention(nn.Module):
    """Multi-head attention with grouped keys and values, under the pass's rule and store."""

    def __init__(self, s: Shape, layer: int):
        super().__init__()
        self.layer, self.head_size, self.clip, self.qk_norm = layer, s.head_size, s.clip, s.qk_norm
        queries, keys = s.heads * s.head_size, s.kv_heads * s.head_size
        self.q = nn.Linear(s.width, queries, bias="qkv" in s.biases)
        self.k = nn.Linear(s.width, keys, bias="qkv" in s.biases)
        self.v = nn.Linear(s.width, keys, bias="qkv" in s.biases)
        self.out = nn.Linear(queries, s.width, bias="out" in s.biases)
        if s.qk_norm:
            self.q_norm = RMSNorm(queries if s.qk_norm == "all" else s.head_size, s.eps)
            self.k_norm = RMSNorm(keys if s.qk_norm == "all" else s.head_size, s.eps)

    def values(self, x_BWE: Tensor) -> Tensor:
        """(B, W, G, D)."""
        v = self.v(x_BWE)
        if self.clip is not None:
            v = v.clamp(-self.clip, self.clip)
        return v.unflatten(-1, (-1, self.head_size))

    def forward(self, x_BWE: Tensor, p: Pass) -> Tensor:
        B, W, _ = x_BWE.shape
        q, k, v = self.q(x_BWE), self.k(x_BWE), self.values(x_BWE)
        if self.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.clip is not None:
            q, k = (y.clamp(-self.clip, self.clip) for y in (q, k))
        q, k = (y.view(B, W, -1, self.head_size) for y in (q, k))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if p.turn is not None:
            q, k = rotate(q, p.turn), rotate(k, p.turn)
        q_BHWD, k_BGKD, v_BGKD = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if p.ctx.store is not None:
            k_BGKD, v_BGKD = p.ctx.store.merge(self.layer, k_BGKD, v_BGKD, p.window)
        y_BHWD = p.ctx.attend(q_BHWD, k_BGKD, v_BGKD, p.mask, p.causal, self.layer)
        return self.out(y_BHWD.transpose(1, 2).reshape(B, W, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, s: Shape):
        super().__init__()
        bias = "mlp" in s.biases
        self.gate = nn.Linear(s.width, s.hidden, bias)
        self.up = nn.Linear(s.width, s.hidden, bias)
        self.down = nn.Linear(s.hidden, s.width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Gelu(nn.Module):
    """down(gelu(up(x))), GPT-2's feed-forward network."""

    def __init__(self, s: Shape):
        super().__init__()
        self.up = nn.Linear(s.width, s.hidden)
        self.down = nn.Linear(s.hidden, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def normaliser(s: Shape) -> nn.Module:
    return nn.LayerNorm(s.width, s.eps) if s.classic else RMSNorm(s.width, s.eps)


class Block(nn.Module):
    """Attention, then a feed-forward network, each on normalised input and added to it."""

    def __init__(self, s: Shape, layer: int):
        super().__init__()
        self.norm_1, self.norm_2 = normaliser(s), normaliser(s)
        self.attention = SelfAttention(s, layer)
        if s.mixture and layer not in s.mixture.dense:
            self.mlp = Experts(s.width, s.mixture)
        else:
            self.mlp = Gelu(s) if s.classic else SwiGLU(s)

    def forward(self, x_BWE: Tensor, p: Pass, read: Tensor | None = None) -> Tensor:
        """(B, W, E), or (N, E) when `read` names the rows that somebody will look at."""
        x = x_BWE + self.attention(self.norm_1(x_BWE), p)
        if read is not None:
            x = x.flatten(0, 1).index_select(0, read)
        return x + self.mlp(self.norm_2(x))


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
        self.embed = nn.Embedding(s.vocab, s.width)
        if s.classic:
            self.places = nn.Embedding(s.context, s.width)
        self.blocks = nn.ModuleList(Block(s, i) for i in range(s.layers))
        self.norm = normaliser(s)
        self.head = nn.Linear(s.width, s.vocab, bias=False)
        self.tie()
        self.freq = frequencies(s)  # no buffer: it must stay float32 whatever the weights become
        self.initialise()

    def tie(self) -> None:
        """Make head and embedding one parameter again, where they should be."""
        if self.s.tied:
            self.head.weight = self.embed.weight

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Random weights as GPT-2 draws them: N(0, 0.02), what ends in the residual stream less by sqrt(2 layers)."""
        for name, p in self.named_parameters():
            if p.dim() == 1:
                nn.init.zeros_(p) if name.endswith("bias") else nn.init.ones_(p)
                continue
            nn.init.normal_(p, std=0.02, generator=generator)
            ends = p if name.endswith((".out.weight", ".down.weight")) else p[2] if ".mlp.weights." in name else None
            if ends is not None:
                with torch.no_grad():
                    ends.mul_((2 * self.s.layers) ** -0.5)

    def turn(self, positions_PW: Tensor, dtype: torch.dtype) -> Turn:
        """Rotary angles, once for all layers."""
        if self.freq.device != positions_PW.device:
            self.freq = self.freq.to(positions_PW.device)
        angle = (positions_PW[..., None].float() * self.freq)[:, :, None]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)

    def look(self, ctx: Context, window: Window, positions_PW: Tensor) -> tuple[Tensor | None, bool]:
        """The mask of the pass, narrowed to the sliding window where the network has one."""
        known = max(window.stop, ctx.store.length if ctx.store else 0)
        far = self.s.sliding
        if far is None or known <= far or ctx.apart:
            return ctx.look(window, positions_PW.device)
        if ctx.positions is None:
            return replace(ctx, rule=both(ctx.rule, lambda q, k: (q - k).abs() < far)).look(window, positions_PW.device)
        if ctx.store is not None:
            raise ValueError("sliding attention with a store and positions of their own: give one or the other")
        near = (positions_PW[:, :, None] - positions_PW[:, None]).abs() < far
        return replace(ctx, rule=both(ctx.rule, lambda q, k: near)).look(window, positions_PW.device)

    def run(self, x_BWE: Tensor, ctx: Context = EVERYTHING, window: Window | None = None) -> Tensor:
        """All blocks: (B, W, E), or (N, E) under `ctx.read`; not yet normalised."""
        window = window or ctx.over(x_BWE.shape[1])
        positions = window.positions(x_BWE.device) if ctx.positions is None else ctx.positions.to(x_BWE.device)
        positions = positions if positions.dim() == 2 else positions[None]
        if self.s.classic and ctx.positions is None and window.stop > self.s.context:
            raise ValueError(f"{window.stop} positions, but this network has learned {self.s.context}")
        x_BWE, turn = self.placed(x_BWE, positions)
        return self.layers(x_BWE, Pass(ctx, window, turn, *self.look(ctx, window, positions)))

    def placed(self, x_BWE: Tensor, positions_PW: Tensor) -> tuple[Tensor, Turn | None]:
        """Embedded tokens told where they stand, by learned positions or by the angles that layers turn by."""
        if self.s.classic:
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
        return self.head(hidden)

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        return self.logits(self.hidden(tokens, ctx))
