"""Phi-3 and Phi-4: Llama whose queries, keys and values are one tensor, as are gate and up."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, Names, llama

NAMES: Names = llama.renamed(
    {
        "model.layers.#.self_attn.qkv_proj": tuple(f"blocks.#.attention.{each}" for each in "qkv"),
        "model.layers.#.mlp.gate_up_proj": ("blocks.#.mlp.gate", "blocks.#.mlp.up"),
    }
)


def shape(config: dict) -> Shape:
    s = llama.shape({"rms_norm_eps": 1e-5, **config, "partial_rotary_factor": 1.0, "attention_bias": False})
    share = config.get("partial_rotary_factor") or 1.0
    return replace(s, sliding=config.get("sliding_window"), turned=int(s.head_size * share))


FAMILY = Family("phi3", shape, NAMES, prefix="model.")
