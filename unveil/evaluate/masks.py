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
POWER = 1.5  # see `around`


def rounds(targets: Tensor, parts: Tensor, starts: Tensor, seed: int, keys: Tensor, draws: int) -> list[Draw]:
    """Draws whose mean is the diffusion bound without its last level, in which all of a group is hidden.

    targets (B, L) bool, parts (B, L) group numbers, starts (B,) where continuations begin, keys (B,)

    Order and offsets of `around` are random, and independent of the tokens.
    """
    rows = keys[:, None]
    at = torch.arange(targets.shape[1], device=targets.device)[None] - starts[:, None]
    first = parts.gather(1, starts[:, None])
    offset = (uniform(seed, LEVEL).to(at.device) + rows * ROW_STEP + (parts - first) * GROUP_STEP) % 1
    return around(targets, parts, uniform(seed, CHOICE, rows, at), offset, draws)


def around(targets: Tensor, parts: Tensor, noise: Tensor, offset: Tensor, draws: int) -> list[Draw]:
    """Draws by exact counts: k of a group's n targets are hidden, k < n, and weigh (n - 1) / k each, times the share
    of levels that the draw stands for.

    noise (B, L) in [0, 1): its order is that of a group's targets; offset (B, L) in [0, 1), the same within a group

    Levels are stratified over the draws, which come in their order; strata end at (1/D)^power, (2/D)^power, ..., so
    that more draws go to low levels, where few tokens are hidden and say little of their level's mean. Every second
    draw takes the mirrored offset: what one is too high in its stratum the next is too low. The targets of a group
    stand around a circle, and each draw hides the k that come next: every set is a uniform one, so the mean stays
    what it is, and neighbouring levels ask about different tokens. (Exact count: LLaDA, 2502.09992, equation 6; strata,
    mirror and circle are ours.)
    """
    length = targets.shape[1]
    n = summed(targets.long(), parts)
    order = torch.where(targets, parts + noise, float(length) + 1).argsort(1)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(length, device=order.device).expand_as(order))
    before = torch.zeros_like(parts).scatter_add_(1, parts, targets.long()).cumsum(1)
    rank = rank - before.gather(1, parts) + n  # within its group
    top = (n - 1).clamp(min=0)
    gone, found = torch.zeros_like(n), []
    for turn in range(draws):
        low, high = (turn / draws) ** POWER, ((turn + 1) / draws) ** POWER
        level = low + (1 - offset if turn % 2 else offset) * (high - low)
        k = (1 + (level * top).long()).minimum(top)
        hit = targets & ((rank - gone) % n.clamp(min=1) < k)
        found.append(Draw(hit, torch.where(hit, top / k.clamp(min=1) * (draws * (high - low)), 0.0).float()))
        gone = gone + k
    return found


def summed(values: Tensor, parts: Tensor) -> Tensor:
    """(B, L) the sum of `values` (B, L) over the group that a position is in, by `parts` (B, L)."""
    return torch.zeros_like(values).scatter_add_(1, parts, values).gather(1, parts)


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
