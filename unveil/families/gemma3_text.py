"""Gemma 3, its text models: most layers see a window of positions, all normalise what they read and what they add."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, Names, gemma, layer_types, llama, only, wide

LAYER = "model.layers.#"
NAMES: Names = llama.renamed(
    {
        f"{LAYER}.post_attention_layernorm": "blocks.#.after_1",
        f"{LAYER}.pre_feedforward_layernorm": "blocks.#.norm_2",
        f"{LAYER}.post_feedforward_layernorm": "blocks.#.after_2",
    }
)


def shape(config: dict) -> Shape:
    for off in ("attn_logit_softcapping", "final_logit_softcapping"):
        only(config, off, (None,), None)
    only(config, "use_bidirectional_attention", (False, None), False)
    rotary = config.get("rope_parameters") or {}
    if "full_attention" in rotary:  # as newer configs say it, by kind of layer
        near, far = rotary["sliding_attention"], rotary["full_attention"]
        config = {**config, "rope_parameters": far, "rope_theta": far["rope_theta"]}
        config["rope_local_base_freq"] = near["rope_theta"]
    s = gemma.shape({"rope_theta": 1e6, "max_position_embeddings": 131072, **config})
    every = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    return replace(
        s,
        order="both",
        qk_norm="head",
        gains=replace(s.gains, queries=(s.head_size / config.get("query_pre_attn_scalar", 256)) ** 0.5),
        sliding=config.get("sliding_window", 4096),
        far=wide(layer_types(config, s.layers, every)),
        theta_near=float(config.get("rope_local_base_freq", 1e4)),
    )


FAMILY = Family("gemma3_text", shape, NAMES, prefix="model.")
