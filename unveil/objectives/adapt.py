"""DiffuGPT and DiffuLLaMA's recipe: let causal attention open little by little while the masked objective is learnt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .. import rules
from ..context import Rule
from ..denoiser import Denoiser
from ..noise import uniform
from ..processes import SHARED, Estimator
from . import Batch, Loss
from .masked import Masked


def annealed(openness: float, seed: int, step: int) -> Rule | None:
    """Causal edges always, every other with probability `openness`: one L x L sample a step, for all rows, heads and
    layers. 0 is the parent's attention, 1 is full."""
    if openness <= 0:
        return rules.causal
    if openness >= 1:
        return None

    def rule(q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) | (uniform(seed, SHARED, step, q, k) < openness)

    return rule


@dataclass
class Adapt:
    """Give it `Shifted(parent)`, whose head keeps predicting the next token (2410.17891).

    It differs from the published code in the divisor, the number of targets and not the number masked, so that the loss
    is the bound and does not depend on how a batch is split; and in what all objectives here share: documents do not
    see each other, their first tokens are no targets, noise levels are evenly spread, and the mask token is a new row.

    anneal  share of training over which attention opens
    hard    full attention from the first step (DiffuLLaMA, where annealing was not possible)
    """

    anneal: float = 0.3
    hard: bool = False
    estimator: Estimator = "bernoulli"
    eps: float = 1e-3

    @property
    def bound(self) -> bool:
        return True

    def openness(self, progress: float) -> float:
        """The probability of an edge that looks ahead."""
        return 1.0 if self.hard or self.anneal <= 0 else min(1.0, progress / self.anneal)

    def __call__(self, model: Denoiser, batch: Batch) -> Loss:
        rule = annealed(self.openness(batch.progress), batch.seed, batch.step)
        return Masked(self.estimator, self.eps)(model, batch, rule)
