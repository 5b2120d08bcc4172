"""SDAR with experts: Qwen3 with experts, read block by block."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, mask_of, olmoe, qwen3_moe, sdar


def shape(config: dict) -> Shape:
    return replace(qwen3_moe.shape({"head_dim": 128, **config}), mask_id=mask_of(config, 151669))


FAMILY = Family("sdar_moe", shape, olmoe.NAMES, prefix="model.", attention=sdar.attention)
