"""Attention for training on a CPU: matrix products over strips of queries, without the keys that nobody may see.

PyTorch's CPU kernel computes every pair of a mask, and its backward pass is slow in bfloat16. Training on
[noisy | clean] copies allows about a quarter of all pairs. Without a mask and in float32 that kernel is used.

Shapes: B rows, H heads, G key-value heads, W queries, K keys, D head size, S queries of a strip, J keys it looks at,
N = B H.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..context import dense


class Strip(NamedTuple):
    """What the queries of one strip look at."""

    queries: slice
    keys: tuple[slice, ...]  # all in which somebody may look at something, in order
    bias: Tensor | None  # (B or 1, 1, S, J) 0 where allowed, else -inf; None: everything there is allowed

    def near(self, x: Tensor) -> Tensor:
        """(N, K, D) to (N, J, D)."""
        return x[:, self.keys[0]] if len(self.keys) == 1 else torch.cat([x[:, each] for each in self.keys], dim=1)

    def give(self, whole: Tensor, x: Tensor) -> None:
        """Add (N, J, D) to the places in (N, K, D) that it belongs to."""
        sizes = [each.stop - each.start for each in self.keys]
        for each, part in zip(self.keys, x.split(sizes, dim=1), strict=True):
            whole[:, each] += part

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """(N, S, J) how much each query takes of each key; normalised in float32 at least. q is scaled already."""
        scores = q @ k.transpose(1, 2)
        wide = scores.float() if scores.dtype == torch.bfloat16 else scores
        if self.bias is not None:
            wide.unflatten(0, (len(self.bias), -1)).add_(self.bias)
        return wide.softmax(-1).to(q.dtype)


class Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v within strips; the backward pass computes the weights again, and keeps none."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, plan: list[Strip]) -> Tensor:
        shape = q.shape
        q = q.flatten(0, 1) * shape[-1] ** -0.5
        k, v = k.flatten(0, 1).contiguous(), v.flatten(0, 1).contiguous()
        ctx.save_for_backward(q, k, v)
        ctx.plan = plan
        found = torch.empty_like(q)
        for strip in plan:
            found[:, strip.queries] = strip.weights(q[:, strip.queries], strip.near(k)) @ strip.near(v)
        return found.view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v = ctx.saved_tensors
        shape, grad = grad.shape, grad.flatten(0, 1)
        for_q = torch.empty_like(q)
        for_k, for_v = (torch.zeros_like(each, dtype=torch.promote_types(each.dtype, torch.float32)) for each in (k, v))
        for strip in ctx.plan:
            some, pull, near = q[:, strip.queries], grad[:, strip.queries], strip.near(k)
            p = strip.weights(some, near)
            strip.give(for_v, p.transpose(1, 2) @ pull)
            pull = torch.ops.aten._softmax_backward_data(pull @ strip.near(v).transpose(1, 2), p, -1, p.dtype)
            for_q[:, strip.queries] = pull @ near
            strip.give(for_k, pull.transpose(1, 2) @ some)
        for_q *= shape[-1] ** -0.5
        inner = shape[:2]
        return *(each.to(q.dtype).unflatten(0, inner) for each in (for_q, for_k, for_v)), None


Planned = tuple[Tensor | None, tuple[int, int, bool], list[Strip]]
"""What was asked, and the strips of it."""


class Strips:
    """An `Attend`. One object serves any number of passes and plans each mask once for all layers.

    No dataclass: FSDP takes those that a module is given apart.
    """

    def __init__(self, size: int = 64):
        self.size = size  # positions of a strip
        self.plans: list[Planned] = []  # of the latest pass: one, or two where some layers see less far

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int) -> Tensor:
        low = torch.is_autocast_enabled("cpu") or q.dtype == torch.bfloat16
        if mask is None and not low:  # PyTorch's kernel is the faster one (benchmarks/training_parts.py)
            return dense(q, k, v, mask, causal, layer)
        asked = q.shape[2], k.shape[2], causal
        plan = next((plan for seen, was, plan in self.plans if seen is mask and was == asked), None)
        if plan is None:
            plan = list(planned(written(asked, mask), self.size))
            self.plans = [*self.plans[-1:], (mask, asked, plan)]
        if (groups := q.shape[1] // k.shape[1]) > 1:
            k, v = (each.repeat_interleave(groups, dim=1) for each in (k, v))
        if torch.is_autocast_enabled("cpu"):
            q, k, v = (each.to(torch.get_autocast_dtype("cpu")) for each in (q, k, v))
        return Attention.apply(q, k, v, plan)


def written(asked: tuple[int, int, bool], mask: Tensor | None) -> Tensor:
    """(B or 1, 1, W, K) bool."""
    width, known, causal = asked
    if mask is not None:
        return mask.expand(-1, -1, width, -1)
    every = torch.ones(1, 1, width, known, dtype=torch.bool)
    return every.tril() if causal else every


def planned(mask: Tensor, size: int) -> Iterator[Strip]:
    """A mask (B or 1, 1, W, K) bool by strips of queries."""
    width, known = mask.shape[2:]
    edges = [*range(0, known, size), known]
    for first in range(0, width, size):
        queries = slice(first, min(first + size, width))
        rows = mask[:, :, queries]
        some = torch.stack([rows[..., a:b].any() for a, b in pairwise(edges)]).tolist()
        keys: list[slice] = []
        for (start, stop), used in zip(pairwise(edges), some, strict=True):
            if used and keys and keys[-1].stop == start:
                keys[-1] = slice(keys[-1].start, stop)
            elif used:
                keys.append(slice(start, stop))
        keys = keys or [slice(0, known)]
        seen = torch.cat([rows[..., each] for each in keys], dim=3)
        bias = None if bool(seen.all()) else torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        yield Strip(queries, tuple(keys), bias)
