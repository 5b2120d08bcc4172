"""SDAR (2510.06303): Qwen3 read block by block, each block bidirectional."""

from __future__ import annotations

from dataclasses import replace

from ..attention import Attention
from ..nn.transformer import Shape
from . import Family, llama, mask_of, qwen3


def shape(config: dict) -> Shape:
    return replace(qwen3.shape(config), mask_id=mask_of(config, 151669))


def attention(config: dict) -> Attention:
    return Attention("block", config.get("block_length") or config.get("block_size") or 4)


FAMILY = Family("sdar", shape, llama.NAMES, prefix="model.", attention=attention)
