"""GLM-4-0414: norms around both parts of a layer, half of each head turned, in pairs that lie side by side."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, Names, ernie4_5, llama

NAMES: Names = llama.renamed(
    ernie4_5.PAIRS
    | {
        "model.layers.#.post_self_attn_layernorm": "blocks.#.after_1",
        "model.layers.#.post_mlp_layernorm": "blocks.#.after_2",
        "model.layers.#.mlp.gate_up_proj": ("blocks.#.mlp.gate", "blocks.#.mlp.up"),
    }
)


def shape(config: dict) -> Shape:
    s = llama.shape({"head_dim": 128, **config, "partial_rotary_factor": 1.0, "attention_bias": False})
    share = config.get("partial_rotary_factor", 0.5)
    biases = frozenset({"qkv"} if config.get("attention_bias", True) else set())
    return replace(s, order="both", biases=biases, turned=int(s.head_size * share))


FAMILY = Family("glm4", shape, NAMES, prefix="model.")
