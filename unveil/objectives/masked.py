"""Masked diffusion (LLaDA, MDLM): predict what was hidden, weighted so that the sum is a bound on the likelihood."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..context import Context, Rule
from ..denoiser import Denoiser
from ..nn import reading
from ..processes import Draw, Estimator, draw, groups
from . import Batch, Loss


def hide(
    batch: Batch,
    size: int | None,
    targets: Tensor,
    estimator: Estimator,
    eps: float = 1e-3,
    *,
    turn: int = 0,
    turns: int = 1,
) -> Draw:
    """What to hide among `targets` (B, L), one level for every document (`size` None) or block of one."""
    parts = groups(batch.tokens.shape, size, batch.documents, batch.tokens.device)
    return draw(targets, parts, batch.seed, batch.keys, estimator=estimator, eps=eps, turn=turn, turns=turns)


def nats(model: Denoiser, batch: Batch, drawn: Draw, rule: Rule | None = None, back: int = 0) -> Tensor:
    """(B,) weighted surprise at the hidden tokens of one noisy stream under `rule`; token i is read at i - `back`."""
    flat = drawn.hit.flatten().nonzero()[:, 0]
    noisy = batch.tokens.masked_fill(drawn.hit, model.mask_id)
    ctx = Context(rule=reading.apart(batch.documents, rule))
    found = reading.surprise(reading.logits(model, noisy, ctx, flat - back), batch.tokens.flatten()[flat])
    return reading.by_row(found * drawn.weight.flatten()[flat], flat, batch.tokens.shape)


def diffusible(model: Denoiser, batch: Batch) -> None:
    """Refuse a checkpoint without a mask token, and text that holds it."""
    if model.mask_id < 0:
        raise ValueError("this model has no mask token, which diffusion needs: adapt it first (unveil adapt)")
    reading.unmasked(model, batch.tokens, batch.targets)


@dataclass
class Masked:
    """One noise level per document; the logits at i speak of token i (a shifted or a same-position model).

    estimator  count: a uniform number of targets is hidden, exactly; bernoulli: each with probability t
    eps        the smallest t of `bernoulli`
    """

    estimator: Estimator = "count"
    eps: float = 1e-3

    @property
    def bound(self) -> bool:
        return True

    def __call__(self, model: Denoiser, batch: Batch, rule: Rule | None = None) -> Loss:
        diffusible(model, batch)
        targets = batch.targets
        total = nats(model, batch, hide(batch, None, targets, self.estimator, self.eps), rule).sum()
        return Loss(total, targets.sum(), {"diffusion": total.detach()})
