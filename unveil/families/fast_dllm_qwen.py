"""Fast-dLLM v2 (2509.26328): Qwen2.5 read block by block with the shift kept."""

from __future__ import annotations

from dataclasses import replace

from ..attention import Attention
from ..nn.transformer import Shape
from . import Family, llama, mask_of, qwen2


def shape(config: dict) -> Shape:
    return replace(qwen2.shape(config), mask_id=mask_of(config, 151665))


def attention(config: dict) -> Attention:
    return Attention("block", config.get("bd_size") or 32)


FAMILY = Family("fast_dllm_qwen", shape, llama.NAMES, prefix="model.", attention=attention, shifted=True)
