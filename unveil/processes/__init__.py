"""How clean sequences become noisy ones: what is hidden, and what a hidden token's surprise counts for.

Shapes: B rows, L positions. A group is a set of positions of one row that one noise level governs: a document, or a
block of one. Everything is a function of a seed and of the rows' keys, so no split of a batch changes a draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..noise import uniform

Estimator = Literal["count", "bernoulli"]

LEVEL, CHOICE, SHARED, MIXTURE = range(4)  # what a random number is for: it keys the draw

# Irrational steps whose multiples fill [0, 1) evenly in two dimensions (Roberts' R2 sequence).
ROW_STEP, GROUP_STEP = 0.7548776662466927, 0.5698402909980532


@dataclass(frozen=True)
class Draw:
    """Where tokens are hidden, and weights that make the weighted sum of their surprise the diffusion bound."""

    hit: Tensor  # (B, L) bool
    weight: Tensor  # (B, L) float32, 0 where nothing is hidden


def groups(shape: torch.Size, size: int | None, documents: Tensor | None, device: torch.device) -> Tensor:
    """(B, L) int64 number of each position's group in its row: documents (B, L), cut into blocks of `size` positions
    counted from the row's beginning. None: whole documents."""
    at = torch.arange(shape[1], device=device)
    begins = (at % size == 0) if size else torch.zeros_like(at, dtype=torch.bool)
    begins = begins.expand(shape).clone()
    if documents is not None:
        begins[:, 1:] |= documents[:, 1:] != documents[:, :-1]
    begins[:, 0] = False
    return begins.cumsum(1)


def spread(seed: int, rows: Tensor, parts: Tensor) -> Tensor:
    """float64 in [0, 1) for each (row, part): uniform over seeds, and evenly spread over consecutive rows and parts."""
    return (uniform(seed, LEVEL).to(rows.device) + rows * ROW_STEP + parts * GROUP_STEP) % 1


def count(targets: Tensor, parts: Tensor, level: Tensor, noise: Tensor) -> Draw:
    """Exact count: of the n targets in a group a uniform subset of k, k uniform over 1..n, weighs n / k each.

    int_0^1 (1/t) E[sum over hidden CE] dt = n E_k[(1/k) sum over the k hidden CE] (LLaDA, 2502.09992, equation 6): the
    bound itself, without the variance of the number hidden and without a smallest t.
    """
    sizes = torch.zeros_like(parts).scatter_add_(1, parts, targets.long())
    n = sizes.gather(1, parts)
    k = (1 + (level * n).long()).minimum(n)
    order = torch.where(targets, parts + noise, parts.shape[1] + 1.0).argsort(1)
    here = torch.arange(order.shape[1], device=order.device).expand_as(order)
    before = (sizes.cumsum(1) - sizes).gather(1, parts)
    rank = torch.empty_like(order).scatter_(1, order, here) - before
    hit = targets & (rank < k)
    return Draw(hit, torch.where(hit, n / k.clamp(min=1), 0.0).float())


def bernoulli(targets: Tensor, level: Tensor, noise: Tensor, eps: float) -> Draw:
    """Each target of a group with probability t, t uniform over [eps, 1], weighs 1 / t (MDLM, 2406.07524).

    The levels below eps are left out, as everywhere in the literature: the bound up to a term of order eps.
    """
    t = eps + (1 - eps) * level
    hit = targets & (noise < t)
    return Draw(hit, torch.where(hit, 1 / t, 0.0).float())


def draw(
    targets: Tensor,
    parts: Tensor,
    seed: int,
    keys: Tensor,
    *,
    estimator: Estimator = "count",
    eps: float = 1e-3,
    turn: int = 0,
    turns: int = 1,
) -> Draw:
    """What to hide among `targets` (B, L) in groups `parts` (B, L), for rows keyed by `keys` (B,).

    `turns` draws of the same rows spread their noise levels evenly; this is draw number `turn`.
    """
    if estimator not in ("count", "bernoulli"):
        raise ValueError(f"no estimator called {estimator!r}; there are: count, bernoulli")
    rows = keys[:, None]
    level = (spread(seed, rows, parts) + turn / turns) % 1
    noise = uniform(seed, CHOICE, turn, rows, torch.arange(targets.shape[1], device=targets.device))
    if estimator == "count":
        return count(targets, parts, level, noise)
    return bernoulli(targets, level, noise, eps)
