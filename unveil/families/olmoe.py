"""OLMoE: experts in every layer, queries and keys normalised over all heads."""

from __future__ import annotations

from dataclasses import replace

from ..nn.moe import Mixture
from ..nn.transformer import Shape
from . import Family, Names, llama

NAMES: Names = llama.NAMES | {
    "model.layers.#.mlp.gate": "blocks.#.mlp.router",
    "model.layers.#.mlp.experts.#.gate_proj": "blocks.#.mlp.weights.#[0]",
    "model.layers.#.mlp.experts.#.up_proj": "blocks.#.mlp.weights.#[1]",
    "model.layers.#.mlp.experts.#.down_proj": "blocks.#.mlp.weights.#[2].T",
}


def shape(config: dict) -> Shape:
    s = llama.shape({"rms_norm_eps": 1e-5, **config, "mlp_bias": False})
    active, renormalise = config.get("num_experts_per_tok", 8), bool(config.get("norm_topk_prob", False))
    mixture = Mixture(config["num_experts"], active, s.hidden, renormalise)
    return replace(s, qk_norm="all", clip=config.get("clip_qkv"), mixture=mixture)


FAMILY = Family("olmoe", shape, NAMES, prefix="model.")
