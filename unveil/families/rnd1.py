"""RND1: Qwen3 with experts, made bidirectional with the shift kept."""

from __future__ import annotations

from dataclasses import replace

from ..attention import Attention
from ..nn.transformer import Shape
from . import Family, mask_of, olmoe, qwen3_moe


def shape(config: dict) -> Shape:
    return replace(qwen3_moe.shape({"head_dim": 128, **config}), mask_id=mask_of(config, 151669))


FAMILY = Family(
    "rnd1",
    shape,
    olmoe.NAMES,
    prefix="model.",
    attention=lambda config: Attention("full"),
    shifted=True,
)
