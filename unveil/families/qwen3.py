"""Qwen3: Llama with normalised queries and keys and a head size of its own."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, llama, qwen2


def shape(config: dict) -> Shape:
    config = {"head_dim": 128, **config}
    return qwen2.slid(replace(llama.shape(config), qk_norm="head"), config)


FAMILY = Family("qwen3", shape, llama.NAMES, prefix="model.")
