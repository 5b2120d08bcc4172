"""How surprising each token is expected to be, whatever is hidden beside it: a control variate of the bound.

Shapes: B rows, L positions. A group is a set of positions that one noise level governs, with n targets in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import Draw
from .masks import summed

NEAR = 0.4  # of a neighbour's weight that the next token but one has, and so on
BEHIND = 0.03  # the same of a token behind, for models that have read from the left
KEPT = 0.65  # of what a token is off the mean with all hidden, where nothing else is


@dataclass(frozen=True)
class Expected:
    """A straight line between two ends that one pass each tells of all tokens.

    Expected of token i, with the set S hidden: alone_i + (all_i - alone_i) * sum over j in S of share_ij, whose mean
    over sets of k tokens that hold i is alone_i + (all_i - alone_i) (k - 1) / (n - 1), as the shares of i sum to 1. So
    the bound of the expectation itself is known, and only what draws are off it is left to chance. Shares fall with the
    distance, for near tokens say most about each other. Numbers are those of small models of text; whatever they are,
    the mean stays the bound.
    """

    alone: Tensor  # (B, L) with nothing else hidden, 0 where there is no target
    all: Tensor  # (B, L) with all targets of its group hidden, the same
    share: Tensor  # (B, S, S) of what there is to know of i, what j tells; S the positions of `span`
    span: slice  # that holds all targets
    left: Tensor  # (B,) of the surprise with all hidden, what the expectation leaves out: infinite, or nothing

    @classmethod
    def of(cls, base: Tensor, causal: Tensor | None, targets: Tensor, parts: Tensor) -> Expected:
        """From `base` (B, L), the surprise with all targets hidden, and `causal` (B, L), that of next-token prediction.

        Where there is none, or where a row's sum is not below the other's and so says little, `alone` is made of `base`
        itself, drawn towards its mean. The choice looks at no draw, which keeps the bound's mean what it is.
        """
        n = summed(targets.long(), parts)
        whole = base.where(targets & base.isfinite(), 0.0)
        mean = summed(whole, parts) / n.clamp(min=1)
        alone = torch.where(targets, mean + KEPT * (whole - mean), 0.0)
        if causal is not None:
            read = causal.where(targets, 0.0)
            alone = torch.where((read.sum(1) < whole.sum(1))[:, None], read, alone)
        alone = torch.where(n > 1, alone, whole)
        left = ((base - whole) / n.clamp(min=1)).where(targets, 0.0).sum(1)
        at = targets.any(0).nonzero()[:, 0]
        span = slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0)
        return cls(alone, whole, shares(targets[:, span], parts[:, span], causal is not None), span, left)

    @property
    def bound(self) -> Tensor:
        """(B,) what the expectation comes to, and what it leaves out of the draws' last level."""
        return (self.alone + self.all).sum(1) / 2 + self.left

    def draws(self, drawn: Sequence[Draw], cost: Tensor) -> Tensor:
        """(B, D) the bound as each draw has it, by the surprise `cost` (D, B, L) at what it hides."""
        off = [(each.weight * (here - self.beside(each.hit))).sum(1) for each, here in zip(drawn, cost, strict=True)]
        return self.bound[:, None] + torch.stack(off, 1)

    def beside(self, hit: Tensor) -> Tensor:
        """(B, L) what is expected of each token when `hit` (B, L) is hidden."""
        told = torch.zeros_like(self.all)
        told[:, self.span] = (self.share @ hit[:, self.span, None].float())[..., 0]
        return self.alone + (self.all - self.alone) * told


def shares(targets: Tensor, parts: Tensor, causal: bool) -> Tensor:
    """(B, L, L) how much of what there is to know of target i the target j of its group tells, for `targets` (B, L)."""
    at = torch.arange(targets.shape[1], device=targets.device)
    apart = at[:, None] - at
    weight = apart.abs() * math.log(NEAR) + torch.where(apart < 0, math.log(BEHIND if causal else 1.0), 0.0)
    together = targets[:, None] & (parts[:, :, None] == parts[:, None]) & (apart != 0)
    return weight.float().masked_fill(~together, -torch.inf).softmax(-1).nan_to_num(0.0)  # of one target nothing
