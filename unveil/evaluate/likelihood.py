"""How well a model predicts text, in nats per token: exactly where it can be known, by a bound elsewhere.

Shapes: B rows, L positions, R rows in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..nn import reading
from ..objectives import Batch, autoregressive, leader, masked
from ..objectives import block as block_diffusion
from .streams import Streams, separable

Mode = Literal["auto", "exact", "bound"]
Draws = Callable[[Batch], list[Tensor]]
"""A batch to (B,) nats for each draw."""


@dataclass(frozen=True)
class Score:
    """Nats per token over all targets, and what kind of number that is."""

    nats: float  # mean over targets
    stderr: float  # standard error of `nats` as the figure of a larger text, rows being the sample; nan for one row
    noise: float  # what of it is due to the random draws alone, from above; 0 when exact
    tokens: int  # targets scored
    exact: bool  # the negative log-likelihood itself
    bound: bool  # not below it; true of exact ones as well
    layout: str  # what was asked, in words
    totals: Tensor = field(repr=False)  # (R,) float64 nats of each row, for paired comparisons
    counts: Tensor = field(repr=False)  # (R,) targets of each row

    @property
    def perplexity(self) -> float:
        """exp(nats): the perplexity, or an upper bound on it. ValueError when the score is neither."""
        if not (self.exact or self.bound):
            raise ValueError("this score is neither a likelihood nor a bound on one: there is no perplexity to it")
        return math.exp(self.nats) if self.nats < 700 else math.inf

    @property
    def kind(self) -> str:
        """exact, bound or neither."""
        return "exact" if self.exact else "bound" if self.bound else "neither"


def score(
    model: Denoiser,
    batches: Batch | Iterable[Batch],
    *,
    mode: Mode = "auto",
    block: int | None = None,
    draws: int = 8,
    rows: int = 16,
    seed: int = 0,
) -> Score:
    """The mean over `batch.targets` of every batch, the same tokens in every mode.

    mode   exact: token by token from the left, under the causal rule (next-token networks, shifted or not);
           bound: the model's own diffusion bound, by exact counts of hidden tokens;
           auto: exact for causal models, the bound for all others
    block  positions per block of the bound; None: what the model was trained with; 0: whole documents, full attention.
           A leader model's block counts its leader, which is scored exactly
    draws  noise draws per row, their levels evenly spread
    rows   rows per forward pass
    seed   keys the draws together with the rows' numbers: two models see the same noise

    ValueError for a mode or block that the model does not have, and when there is nothing to score.
    """
    if draws < 1 or rows < 1:
        raise ValueError(f"a score needs at least one draw and one row a pass, got draws={draws}, rows={rows}")
    if mode not in ("auto", "exact", "bound"):
        raise ValueError(f"no way to score called {mode!r}; there are: auto, exact, bound")
    exact = mode == "exact" or (mode == "auto" and model.attention.kind == "causal")
    draws = 1 if exact else draws
    layout, one = exactly(model) if exact else bounded(model, block, draws)
    sums, counts = [], []
    was = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in pieces(batches, rows, seed):
                if exact:
                    reading.unmasked(model, batch.tokens, batch.targets)
                else:
                    masked.diffusible(model, batch)
                sums.append(torch.stack(one(batch)).double().cpu())
                counts.append(batch.targets.sum(1).cpu())
    finally:
        model.train(was)
    if not sums or not sum(int(some.sum()) for some in counts):
        raise ValueError("there is nothing to score: no token stands behind another of the same document")
    each, targets = torch.cat(sums, dim=1), torch.cat(counts)
    totals, tokens = each.mean(0), int(targets.sum())
    nats, count = float(totals.sum() / tokens), len(totals)
    off = totals - nats * targets  # the mean is a ratio of sums: its error is that of the residuals
    stderr = math.sqrt(count / (count - 1) * float((off**2).sum())) / tokens if count > 1 else math.nan
    # Draws spread evenly vary less than independent ones, so this is from above.
    noise = math.sqrt(float(each.var(0).sum()) / draws) / tokens if draws > 1 else 0.0 if exact else math.nan
    return Score(nats, stderr, noise, tokens, exact, True, layout, totals, targets)


def pieces(batches: Batch | Iterable[Batch], rows: int, seed: int) -> Iterator[Batch]:
    """At most `rows` rows at a time, numbered through where they have no numbers of their own."""
    seen = 0
    for batch in [batches] if isinstance(batches, Batch) else batches:
        numbers = torch.arange(seen, seen + len(batch.tokens), device=batch.tokens.device)
        batch = replace(batch, seed=seed, ids=numbers if batch.ids is None else batch.ids)
        seen += len(numbers)
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        for first in range(0, len(numbers), rows):
            yield replace(batch, **{name: value[first : first + rows] for name, value in tensors.items()})


def exactly(model: Denoiser) -> tuple[str, Draws]:
    """Next-token prediction."""
    if not (model.shifted or model.attention.leads):
        raise ValueError(
            f"this model predicts no next token ({model.attention.kind} attention, not shifted), so its likelihood is "
            "not known exactly: use mode bound"
        )
    return "next token, causal attention", lambda batch: [autoregressive.nats(model, batch)]


def bounded(model: Denoiser, size: int | None, draws: int) -> tuple[str, Draws]:
    """The bound by exact counts, in the layout of the model or in blocks of `size` positions."""
    if size is not None and size < 0:
        raise ValueError(f"a block has a number of positions, or 0 for whole documents; got {size}")
    size = model.attention.block or 0 if size is None else size
    next_token = model.shifted or model.attention.leads
    if not size:
        back = reading.lag(model) if next_token else 0

        def whole(batch: Batch) -> list[Tensor]:
            hidden = (masked.hide(batch, None, batch.targets, "count", turn=t, turns=draws) for t in range(draws))
            return [masked.nats(model, batch, drawn, back=back) for drawn in hidden]

        return "whole documents, full attention", whole
    if next_token:

        def led(batch: Batch) -> list[Tensor]:
            hidden = (leader.draw_followers(batch, size - 1, "count", turn=t, turns=draws) for t in range(draws))
            if separable(model, batch.tokens.shape[1]):
                return list(map(Streams(model, batch, size, leads=True).nats, hidden))
            return [leader.nats(model, batch, drawn, size - 1) for drawn in hidden]

        return f"blocks of {size}, the first token exact", led

    def blocks(batch: Batch) -> list[Tensor]:
        hidden = (masked.hide(batch, size, batch.targets, "count", turn=t, turns=draws) for t in range(draws))
        if separable(model, batch.tokens.shape[1]):
            return list(map(Streams(model, batch, size, leads=False).nats, hidden))
        return [block_diffusion.nats(model, batch, drawn, size) for drawn in hidden]

    return f"blocks of {size}, clean context", blocks
