"""Attention for training on a CPU: matrix products over strips of queries, without the keys that nobody may see.

PyTorch's CPU kernel computes every pair of a mask, and its backward pass is slow in bfloat16. Training on
[noisy | clean] copies allows about a quarter of all pairs.

Shapes: B rows, H heads, G key-value heads, W queries, K keys, D head size, S queries of a strip, J keys it looks at.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Strip(NamedTuple):
    """What the queries of one strip look at."""

    keys: tuple[int, ...]  # numbers of the strips of keys in which somebody may look at something
    bias: Tensor | None  # (B or 1, 1, S, J) 0 where allowed, else -inf; None: everything there is allowed


class Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D) + bias) v; the backward pass computes the weights again instead of keeping them."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        return weights(q, k, bias) @ v

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad: Tensor):
        q, k, v, bias = ctx.saved_tensors
        p, scale = weights(q, k, bias), q.shape[-1] ** -0.5
        pull = torch.ops.aten._softmax_backward_data(grad @ v.transpose(-1, -2), p, -1, p.dtype)
        return (pull @ k).mul_(scale), (pull.transpose(-1, -2) @ q).mul_(scale), p.transpose(-1, -2) @ grad, None


def weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, S, J) how much each query takes of each key; normalised in float32 at least."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    wide = scores.float() if scores.dtype == torch.bfloat16 else scores
    return (wide if bias is None else wide.add_(bias.to(wide.dtype))).softmax(-1).to(q.dtype)


class Strips:
    """An `Attend`. One object serves any number of passes and plans each mask once for all layers.

    No dataclass: FSDP takes those that a module is given apart.
    """

    def __init__(self, size: int = 64):
        self.size = size  # positions of a strip
        self.mask: Tensor | None = None  # of the latest pass
        self.asked: tuple[int, int, bool] | None = None
        self.plan: list[Strip] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int) -> Tensor:
        asked = q.shape[2], k.shape[2], causal
        if mask is not self.mask or asked != self.asked:
            self.mask, self.asked, self.plan = mask, asked, planned(self.written(asked, mask), self.size)
        if (groups := q.shape[1] // k.shape[1]) > 1:
            k, v = (each.repeat_interleave(groups, dim=1) for each in (k, v))
        ks, vs = k.split(self.size, dim=2), v.split(self.size, dim=2)
        found = []
        for part, strip in zip(q.split(self.size, dim=2), self.plan, strict=True):
            near, their = (torch.cat([each[i] for i in strip.keys], dim=2) for each in (ks, vs))
            found.append(Attention.apply(part, near, their, strip.bias))
        return torch.cat(found, dim=2)

    @staticmethod
    def written(asked: tuple[int, int, bool], mask: Tensor | None) -> Tensor:
        """(B or 1, 1, W, K) bool."""
        width, known, causal = asked
        if mask is not None:
            return mask.expand(-1, -1, width, -1)
        every = torch.ones(1, 1, width, known, dtype=torch.bool)
        return every.tril() if causal else every


def planned(mask: Tensor, size: int) -> list[Strip]:
    """A mask (B or 1, 1, W, K) bool by strips of queries."""
    plan = []
    for rows in mask.split(size, dim=2):
        parts = rows.split(size, dim=3)
        some = torch.stack([part.any() for part in parts]).tolist()
        keys = tuple(i for i, used in enumerate(some) if used) or (0,)
        seen = torch.cat([parts[i] for i in keys], dim=3)
        bias = None if bool(seen.all()) else torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        plan.append(Strip(keys, bias))
    return plan
