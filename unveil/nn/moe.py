"""Mixture of experts. Where an expert's weights live is the business of `fetch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


class Experts(nn.Module):
    """(..., E) to (..., E): each token goes to its `active` best experts, weighted by the router's softmax over all."""

    def __init__(self, width: int, m: Mixture):
        super().__init__()
        self.active, self.renormalise = m.active, m.renormalise
        self.router = nn.Linear(width, m.experts, bias=False)
        # each (3, hidden, width): gate, up and the transpose of down
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(3, m.hidden, width)) for _ in range(m.experts))
        self.fetch: Callable[[int], Tensor] | None = None  # set when the weights live elsewhere

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        share, chosen = self.router(flat).softmax(-1, dtype=torch.float32).topk(self.active)
        if self.renormalise:
            share = share / share.sum(-1, keepdim=True)
        share = share.to(x.dtype).flatten()
        # tokens are sorted by expert, so that each expert works on one contiguous group
        order = chosen.flatten().argsort(stable=True)
        groups = chosen.flatten().bincount(minlength=self.router.out_features).tolist()
        row = order // self.active
        gathered = flat.index_select(0, row)
        parts = []
        fetch = self.fetch or self.weights.__getitem__
        for expert, group in enumerate(gathered.split(groups)):
            if len(group) or torch.is_grad_enabled():  # every process of a run needs a gradient for every expert
                gate, up, down = fetch(expert)
                parts.append((F.silu(group @ gate.T) * (group @ up.T)) @ down)
        if not parts:
            return torch.zeros_like(x)
        y = torch.cat(parts) * share.index_select(0, order)[:, None]
        return torch.zeros_like(flat).index_add(0, row, y).view_as(x)
