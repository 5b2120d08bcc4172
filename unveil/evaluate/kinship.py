"""Do two checkpoints share their weights? A scorer that does is no independent judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..denoiser import Denoiser
from ..nn.grow import bare

APART = 0.05  # correlation; that of unrelated matrices of 256 x 256 is below 0.02


@dataclass(frozen=True)
class Kinship:
    """How alike the weight matrices of two models are, where they have any of one name and size."""

    correlation: float  # the mean over all weights in such matrices; 0: there are none

    @property
    def independent(self) -> bool:
        return abs(self.correlation) < APART

    @property
    def sentence(self) -> str:
        if self.independent:
            return "independent of the model: no weights in common"
        return (
            f"NOT independent: its weights and the model's correlate at {self.correlation:.2f}, so one was made from "
            "the other, or both began alike"
        )


@torch.inference_mode()
def kinship(model: Denoiser, scorer: Denoiser) -> Kinship:
    """Matrices are compared by name; of embeddings the rows that both have."""
    theirs = dict(bare(scorer).named_parameters())
    total = size = 0.0
    for name, ours in bare(model).named_parameters():
        other = theirs.get(name)
        if other is None or ours.dim() < 2 or ours.shape[1:] != other.shape[1:]:
            continue
        rows = min(len(ours), len(other))
        pair = torch.stack([ours[:rows].flatten().float().cpu(), other[:rows].flatten().float().cpu()])
        total += float(torch.corrcoef(pair)[0, 1].nan_to_num()) * pair.shape[1]
        size += pair.shape[1]
    return Kinship(total / size if size else 0.0)
