"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, llama


def sliding(config: dict) -> int | None:
    """The window, where every layer has it; a network in which only some have it is refused."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    if window is None:
        return None
    layers = config["num_hidden_layers"]
    full = min(config.get("max_window_layers", 28), layers)
    kinds = config.get("layer_types") or ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    if len(set(kinds)) > 1:
        raise ValueError("sliding attention in some layers only is not supported: layer_types must be all alike")
    return window if kinds[0] == "sliding_attention" else None


def shape(config: dict) -> Shape:
    plain = llama.shape({**config, "attention_bias": False})
    return replace(plain, biases=frozenset({"qkv"}), sliding=sliding(config))


FAMILY = Family("qwen2", shape, llama.NAMES, prefix="model.")
