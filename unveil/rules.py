"""Who may look at whom. Training and sampling import the same rules, so they cannot drift apart."""

from __future__ import annotations

import torch
from torch import Tensor

from .context import Rule, causal

__all__ = ["both", "causal", "documents", "leading", "not_later", "teacher_forcing", "within"]


def both(first: Rule | None, second: Rule | None) -> Rule | None:
    """What both rules allow; None allows everything."""
    if first is None or second is None:
        return first or second
    return lambda q, k: first(q, k) & second(q, k)


def not_later(edges: list[int] | Tensor | int) -> Rule:
    """A position looks at its own block and earlier ones (BD3-LM).

    `edges` are where blocks begin, for all rows; or an int: equal blocks of that many positions, counted from 0.
    """
    if isinstance(edges, int):
        return lambda q, k: k // edges <= q // edges
    bounds = torch.as_tensor(edges)

    def rule(q: Tensor, k: Tensor) -> Tensor:
        here = bounds.to(k.device)
        return torch.bucketize(q, here, right=True) >= torch.bucketize(k, here, right=True)

    return rule


def leading(starts: int | Tensor, width: int) -> Rule:
    """What is committed is read left to right; the open block of `width` at `starts` sees it and all of itself."""

    def rule(q: Tensor, k: Tensor) -> Tensor:
        first = starts if isinstance(starts, int) else starts.to(k.device)[:, None, None]
        return (k <= q) | ((q >= first) & (k < first + width) & (q < first + width))

    return rule


def within(lengths: Tensor) -> Rule:
    """Only keys that exist: `lengths` (B,) is the true length of each row."""
    return lambda q, k: k < lengths.to(k.device)[:, None, None]


def documents(ids: Tensor) -> Rule:
    """Only the same document: `ids` (B, L) numbers the document of every position."""

    def rule(q: Tensor, k: Tensor) -> Tensor:
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        return ids[rows, q[..., 0]][:, :, None] == ids[rows, k[:, 0]][:, None]

    return rule


def teacher_forcing(length: int, size: int, *, token_causal: bool = False) -> Rule:
    """For a noisy copy of `length` positions followed by a clean one (BD3-LM; the leader layout with `token_causal`).

    Noisy positions see clean blocks before theirs and their own noisy block. Clean positions see clean ones: block by
    block, or token by token when `token_causal`. `size` 0 with `token_causal` means that no noisy block exists.
    """

    def rule(q: Tensor, k: Tensor) -> Tensor:
        q_clean, k_clean = q >= length, k >= length
        q_at, k_at = q % length, k % length
        q_block, k_block = q_at // size, k_at // size
        own = (k_at <= q_at) if token_causal else (k_block <= q_block)
        return torch.where(q_clean, k_clean & own, torch.where(k_clean, k_block < q_block, k_block == q_block))

    return rule
