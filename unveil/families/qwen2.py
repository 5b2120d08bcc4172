"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, llama, wide


def slid(s: Shape, config: dict) -> Shape:
    """With the sliding window of some layers or all, where the config turns it on."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    if window is None:
        return s
    full = min(config.get("max_window_layers", 28), s.layers)
    kinds = config.get("layer_types") or ["full_attention"] * full + ["sliding_attention"] * (s.layers - full)
    return replace(s, sliding=window, far=wide(kinds))


def shape(config: dict) -> Shape:
    plain = llama.shape({**config, "attention_bias": False})
    return slid(replace(plain, biases=frozenset({"qkv"})), config)


FAMILY = Family("qwen2", shape, llama.NAMES, prefix="model.")
