"""StarCoder2: rotary positions and grouped keys in a network that is otherwise GPT-2's."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, Names, llama, only

NAMES: Names = llama.renamed(
    {"model.layers.#.mlp.c_fc": "blocks.#.mlp.up", "model.layers.#.mlp.c_proj": "blocks.#.mlp.down"}
)


def shape(config: dict) -> Shape:
    only(config, "hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    s = llama.shape({"tie_word_embeddings": True, **config, "hidden_act": "silu", "attention_bias": False})
    return replace(
        s,
        eps=config.get("norm_epsilon", 1e-5),
        biases=frozenset({"qkv", "out", "mlp"} if config.get("use_bias", True) else set()),
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        sliding=config.get("sliding_window"),
    )


FAMILY = Family("starcoder2", shape, NAMES, prefix="model.")
