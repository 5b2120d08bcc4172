"""What is hidden of a continuation in each of its draws, and what a hidden token's surprise counts for.

Shapes: B rows, L positions, D draws. A group is a set of positions that one noise level governs. Random numbers are
keyed by what they belong to and by how far from the continuation's beginning a token stands, so that continuations of
one key are hidden alike, whatever stands before them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..noise import uniform
from ..processes import CHOICE, GROUP_STEP, LEVEL, ROW_STEP, Draw

STEPS = 32  # of DiffuLLaMA's grid
SCATTER = 7  # keys its random numbers


def rounds(targets: Tensor, parts: Tensor, starts: Tensor, seed: int, keys: Tensor, draws: int) -> list[Draw]:
    """Draws of the diffusion bound by exact counts: k of a group's n targets are hidden and weigh n / k each.

    targets (B, L) bool, parts (B, L) group numbers, starts (B,) where continuations begin, keys (B,)

    The levels k are stratified over the draws. The targets of a group stand around a circle in one random order, and
    each draw hides the k that come next: every set is a uniform one, so the mean stays the bound, and neighbouring
    levels ask about different tokens. (Exact count: LLaDA, 2502.09992, equation 6; the circle is ours.)
    """
    length, rows = targets.shape[1], keys[:, None]
    at = torch.arange(length, device=targets.device)[None] - starts[:, None]
    first = parts.gather(1, starts[:, None])
    n = torch.zeros_like(parts).scatter_add_(1, parts, targets.long()).gather(1, parts)
    noise = uniform(seed, CHOICE, rows, at)
    order = torch.where(targets, parts + noise, float(length) + 1).argsort(1)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(length, device=order.device).expand_as(order))
    before = torch.zeros_like(parts).scatter_add_(1, parts, targets.long()).cumsum(1)
    rank = rank - before.gather(1, parts) + n  # within its group
    base = (uniform(seed, LEVEL).to(at.device) + rows * ROW_STEP + (parts - first) * GROUP_STEP) % 1
    gone, found = torch.zeros_like(n), []
    for turn in range(draws):
        k = (1 + ((base + turn) / draws * n).long()).minimum(n)
        hit = targets & ((rank - gone) % n.clamp(min=1) < k)
        found.append(Draw(hit, torch.where(hit, n / k.clamp(min=1), 0.0).float()))
        gone = gone + k
    return found


def grid(targets: Tensor, starts: Tensor, seed: int, keys: Tensor, options: Tensor) -> list[Draw]:
    """The 32 passes of DiffuLLaMA's evaluation: targets hidden with probability t / 32 each, t = 32 to 1, independently
    for every option, and the plain mean of what is hidden; a pass that hides nothing counts as 0.

    Neither a likelihood nor a bound: levels are not weighted, and empty passes favour short options.
    """
    at = torch.arange(targets.shape[1], device=targets.device)[None] - starts[:, None]
    found = []
    for t in range(STEPS, 0, -1):
        hit = targets & (uniform(seed, SCATTER, t, keys[:, None], options[:, None], at) < t / STEPS)
        weight = hit / hit.sum(1, keepdim=True).clamp(min=1)
        found.append(Draw(hit, weight.float()))
    return found
