"""Dream (2508.15487): Qwen2.5 made bidirectional with the shift kept."""

from __future__ import annotations

from dataclasses import replace

from ..attention import Attention
from ..nn.transformer import Shape
from . import Family, llama, mask_of, qwen2


def shape(config: dict) -> Shape:
    return replace(qwen2.shape(config), mask_id=mask_of(config, 151666))


FAMILY = Family(
    "dream",
    shape,
    llama.NAMES,
    prefix="model.",
    attention=lambda config: Attention("full"),
    shifted=True,
)
