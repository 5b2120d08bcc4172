"""RND1: Qwen3 with experts, made bidirectional with the shift kept."""

from __future__ import annotations

from ..attention import Attention
from . import Family, olmoe, sdar_moe

FAMILY = Family(
    "rnd1",
    sdar_moe.shape,
    olmoe.NAMES,
    prefix="model.",
    attention=lambda config: Attention("full"),
    shifted=True,
)
