"""SmolLM3: Llama in which every fourth layer is told no positions."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, llama, only


def shape(config: dict) -> Shape:
    only(config, "use_sliding_window", (False, None), False)
    s = llama.shape({"tie_word_embeddings": True, **config})
    every = config.get("no_rope_layer_interval", 4)
    told = config.get("no_rope_layers") or [(layer + 1) % every for layer in range(s.layers)]
    return replace(s, unturned=frozenset(layer for layer, positions in enumerate(told) if not positions))


FAMILY = Family("smollm3", shape, llama.NAMES, prefix="model.")
