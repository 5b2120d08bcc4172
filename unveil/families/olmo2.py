"""OLMo 2: Llama that normalises what a layer adds, not what it reads, and queries and keys over all heads."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, Names, llama

NAMES: Names = llama.renamed(
    {
        "model.layers.#.post_attention_layernorm": "blocks.#.after_1",
        "model.layers.#.post_feedforward_layernorm": "blocks.#.after_2",
    }
)


def shape(config: dict) -> Shape:
    return replace(llama.shape({"rms_norm_eps": 1e-5, **config, "mlp_bias": False}), order="post", qk_norm="all")


FAMILY = Family("olmo2", shape, NAMES, prefix="model.")
