"""Direct preference optimisation for diffusion models (VRPO): a chosen answer should gain on a rejected one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoiser import Denoiser
from ..nn import reading
from . import Batch, Loss, autoregressive, block, leader, masked


def nats(model: Denoiser, batch: Batch, turn: int = 0, turns: int = 1) -> Tensor:
    """(B,) one draw of the bound that the model is scored by: what its own attention can be trained with."""
    size, targets = model.attention.block, batch.targets
    match model.attention.kind:
        case "causal":
            return autoregressive.nats(model, batch)
        case "leader" if size is not None:
            drawn = leader.draw_followers(batch, size - 1, "count", turn=turn, turns=turns)
            return leader.nats(model, batch, drawn, size - 1)
        case "block" if size is not None:
            drawn = masked.hide(batch, size, targets, "count", turn=turn, turns=turns)
            return block.nats(model, batch, drawn, size)
        case _:
            drawn = masked.hide(batch, None, targets, "count", turn=turn, turns=turns)
            return masked.nats(model, batch, drawn, back=reading.lag(model) if model.attention.leads else 0)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Rows of a chosen and a rejected text, side by side, as two batches whose noise is independent."""
    length = batch.tokens.shape[1] // 2
    both = []
    for side, (tokens, answer) in enumerate(
        zip(batch.tokens.split(length, 1), batch.answer.split(length, 1), strict=True)
    ):
        both.append(replace(batch, tokens=tokens, answer=answer, documents=None, ids=2 * batch.keys + side))
    return both[0], both[1]


@dataclass
class Preference:
    """-log sigmoid(beta ((B(w) - B'(w)) - (B(l) - B'(l)))) for a chosen answer w and a rejected l (2505.19223, eq. 8).

    B is the model's bound on log p(answer | prompt), B' that of the frozen model it starts from, in nats. Both are
    estimated from the same `draws` draws of noise, their levels evenly spread and one mask for each level (VRPO): what
    masks have in common cancels in the difference, and with it bias and variance of the loss. Of a causal model the
    likelihood is exact, and this is DPO (2305.18290).

    beta    how much a gain of one nat counts
    draws   noise draws an answer, the budget of VRPO; memory and time grow with it
    keep    weight of the chosen answer's own loss, in nats per token, which keeps its likelihood up (2404.19733)
    shared  False draws other noise for the frozen model, to see what sharing is worth

    Rows hold both answers behind their prompt, side by side: (B, 2L). The mean is per pair.
    """

    beta: float = 0.1
    draws: int = 4
    keep: float = 0.0
    shared: bool = True
    reference: Denoiser | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        if not self.beta > 0 or self.draws < 1 or self.keep < 0:
            raise ValueError(
                "preference needs beta above 0, at least one draw and keep of at least 0; "
                f"got beta={self.beta}, draws={self.draws}, keep={self.keep}"
            )

    @property
    def bound(self) -> bool:
        return False

    def __call__(self, model: Denoiser, batch: Batch) -> Loss:
        if self.reference is None:
            raise ValueError("preference compares with the frozen model: set the objective's `reference`")
        if batch.tokens.shape[1] % 2:
            raise ValueError(f"rows of {batch.tokens.shape[1]} tokens cannot hold two answers of equal length")
        chosen, rejected = halves(batch)
        spent, was = self.spent(model, chosen)
        other, other_was = self.spent(model, rejected)
        margin = self.beta * ((was - spent) - (other_was - other))
        lost = -F.logsigmoid(margin)
        total = lost.sum()
        if self.keep:
            total = total + self.keep * (spent / chosen.targets.sum(1).clamp(min=1)).sum()
        parts = {
            "preference": lost.sum(),
            "margin": margin.sum(),
            "right": (margin > 0).sum(),
            "chosen": (was - spent).sum(),  # nats that it has gained
            "rejected": (other_was - other).sum(),
        }
        return Loss(total, torch.tensor(len(margin)), {name: value.detach() for name, value in parts.items()})

    def spent(self, model: Denoiser, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) nats that the model and the frozen one need for the rows' answers, means over the draws."""
        assert self.reference is not None
        if model.mask_id >= 0:
            masked.diffusible(model, batch)
        draws = 1 if model.attention.kind == "causal" else self.draws
        ours = torch.stack([nats(model, batch, turn, draws) for turn in range(draws)]).mean(0)
        apart = batch if self.shared else replace(batch, seed=batch.seed + 1)
        with torch.no_grad():
            theirs = torch.stack([nats(self.reference, apart, turn, draws) for turn in range(draws)]).mean(0)
        return ours, theirs
