"""Mixture of experts. Where an expert's weights live is the business of `fetch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Mixture:
    """What the mixture-of-experts layers of a network look like."""

    experts: int
    active: int  # experts per token
    hidden: int  # width inside one expert
    renormalise: bool = False  # do the shares of the chosen experts sum to one?
    dense: frozenset[int] = frozenset()  # layers that have an ordinary feed-forward network
    score: Literal["softmax", "sigmoid"] = "softmax"  # what makes shares of the router's logits
    biased: bool = False  # is there a bias that counts for the choice of experts and not for their shares?
    groups: int = 1  # of experts, side by side
    open: int = 1  # groups that a token may choose from: those whose two best experts score highest
    scale: float = 1.0  # of what the experts say together
    shared: int = 0  # width of a feed-forward network that every token takes beside its experts; 0: none


class Experts(nn.Module):
    """(..., E) to (..., E): each token goes to its `active` best experts, weighted by the router's scores.

    Sources: softmax over all (Switch, OLMoE, Qwen3); sigmoid, a bias for the choice, groups and a shared network
    (DeepSeek-V3, 2412.19437, 2.1.2).
    """

    def __init__(self, width: int, m: Mixture, shared: nn.Module | None = None):
        super().__init__()
        self.m, self.shared = m, shared
        self.router = nn.Linear(width, m.experts, bias=False)
        # each (3, hidden, width): gate, up and the transpose of down
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(3, m.hidden, width)) for _ in range(m.experts))
        # Whoever trains a router moves it by how busy experts are, not by a gradient; it stays float32.
        self.bias = nn.Parameter(torch.zeros(m.experts), requires_grad=False) if m.biased else None
        self.fetch: Callable[[int], Tensor] | None = None  # set when the weights live elsewhere

    def choose(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """(N, E) to the shares and the numbers of each token's experts, (N, active)."""
        m, logits = self.m, self.router(flat).float()
        score = logits.softmax(-1) if m.score == "softmax" else logits.sigmoid()
        wish = score if self.bias is None else score + self.bias
        if m.groups > 1:
            each = wish.unflatten(-1, (m.groups, -1))
            best = each.topk(2).values.sum(-1).topk(m.open).indices
            closed = torch.ones(each.shape[:2], dtype=torch.bool, device=each.device).scatter_(1, best, False)
            wish = each.masked_fill(closed[..., None], -torch.inf).flatten(1)
        chosen = wish.topk(m.active).indices
        share = score.gather(1, chosen)
        if m.renormalise:
            share = share / share.sum(-1, keepdim=True)
        return share * m.scale, chosen

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixed(x.reshape(-1, x.shape[-1])).view_as(x)
        return y if self.shared is None else y + self.shared(x)

    def mixed(self, flat: Tensor) -> Tensor:
        """(N, E) to what each token's experts say of it, (N, E)."""
        share, chosen = self.choose(flat)
        share = share.to(flat.dtype).flatten()
        # tokens are sorted by expert, so that each expert works on one contiguous group
        order = chosen.flatten().argsort(stable=True)
        groups = chosen.flatten().bincount(minlength=self.router.out_features).tolist()
        row = order // self.m.active
        gathered = flat.index_select(0, row)
        parts = []
        fetch = self.fetch or self.weights.__getitem__
        for expert, group in enumerate(gathered.split(groups)):
            if len(group) or torch.is_grad_enabled():  # every process of a run needs a gradient for every expert
                gate, up, down = fetch(expert)
                parts.append((F.silu(group @ gate.T) * (group @ up.T)) @ down)
        if not parts:
            return torch.zeros_like(flat)
        y = torch.cat(parts) * share.index_select(0, order)[:, None]
        return torch.zeros_like(flat).index_add(0, row, y)
