"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from dataclasses import replace

from ..nn.moe import Mixture
from ..nn.transformer import Shape
from . import Family, Names, llama

NAMES: Names = llama.NAMES | {
    "model.layers.#.block_sparse_moe.gate": "blocks.#.mlp.router",
    "model.layers.#.block_sparse_moe.experts.#.w1": "blocks.#.mlp.weights.#[0]",
    "model.layers.#.block_sparse_moe.experts.#.w3": "blocks.#.mlp.weights.#[1]",
    "model.layers.#.block_sparse_moe.experts.#.w2": "blocks.#.mlp.weights.#[2].T",
}


def shape(config: dict) -> Shape:
    s = llama.shape({"rms_norm_eps": 1e-5, **config})
    mixture = Mixture(config.get("num_local_experts", 8), config.get("num_experts_per_tok", 2), s.hidden, True)
    theta = float(config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 1e6))
    return replace(s, theta=theta, sliding=config.get("sliding_window"), mixture=mixture)


FAMILY = Family("mixtral", shape, NAMES, prefix="model.")
