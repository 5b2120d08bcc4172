"""AdamW over groups of parameters, its schedule, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .machine import local
from .recipe import Recipe

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Embeddings, MLPs and the rest, each with and without decay; `share` multiplies the learning rate."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        share, decay = 1.0, recipe.weight_decay if weight.dim() > 1 else 0.0
        if id(weight) in embeddings:
            share, decay = recipe.embedding_lr, 0.0
        elif "mlp" in name.split("."):
            share = recipe.mlp_lr
        found.setdefault((share, decay), []).append(weight)
    return [{"params": p, "share": share, "weight_decay": decay} for (share, decay), p in found.items()]


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Decoupled weight decay (Loshchilov and Hutter, 2019), in one kernel per group."""
    return torch.optim.AdamW(groups(model, recipe), lr=recipe.lr, betas=recipe.betas, eps=1e-8, fused=True)


def rate(recipe: Recipe, share: float) -> float:
    """Linear warm-up, then cosine to `min_lr` of the peak. `share` in [0, 1] of the run, this step included."""
    if share < recipe.warmup:
        return recipe.lr * share / recipe.warmup
    fallen = (share - recipe.warmup) / (1 - recipe.warmup) if recipe.warmup < 1 else 0.0
    return recipe.lr * (recipe.min_lr + (1 - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * fallen)))


def set_rate(optimiser: torch.optim.AdamW, lr: float) -> None:
    """Give every group its multiple of `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["share"]


def flatten(model: nn.Module, optimiser: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimiser's tensors by the name of the parameter they belong to."""
    state = {name: optimiser.state[weight] for name, weight in model.named_parameters() if weight in optimiser.state}
    return {f"{moment}/{name}": moments[moment] for name, moments in state.items() for moment in MOMENTS}


def blank(model: nn.Module, optimiser: torch.optim.AdamW, names: Container[str]) -> None:
    """Give the weights whose "step/..." is in `names` a state of zeros: room for what is read from a checkpoint."""
    for name, weight in model.named_parameters():
        if f"step/{name}" in names:
            state = {moment: torch.zeros_like(weight, requires_grad=False) for moment in MOMENTS[1:]}
            optimiser.state[weight] = {"step": torch.zeros((), device=weight.device), **state}


class Average:
    """Exponential moving average of the trained weights, in float32 (Polyak averaging).

    The decay grows from 0.1 as (1 + t) / (10 + t) up to `decay`, so that short runs forget their start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.kept = {n: p.detach().clone() for n, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After update number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        kept, weights = ([local(each) for each in some.values()] for some in (self.kept, self.weights))
        torch.ops.aten._foreach_lerp_.Scalar(kept, weights, 1 - decay)

    def swap(self) -> None:
        """Exchange the model's weights and the average in place, since others hold on to the weights' memory."""
        for name, weight in self.weights.items():
            mine, kept = local(weight), local(self.kept[name])
            before = mine.clone()
            mine.copy_(kept)
            kept.copy_(before)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
