"""OLMoE: experts in every layer, queries and keys normalised over all heads."""

from __future__ import annotations

from dataclasses import replace

from ..nn.moe import Mixture
from ..nn.transformer import Shape
from . import Family, Names, llama


def experts(module: str = "mlp", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Names:
    """A router and its experts, by what they call the module and the matrices of one expert."""
    there = f"model.layers.#.{module}"
    return {
        f"{there}.gate": "blocks.#.mlp.router",
        f"{there}.experts.#.{gate}": "blocks.#.mlp.weights.#[0]",
        f"{there}.experts.#.{up}": "blocks.#.mlp.weights.#[1]",
        f"{there}.experts.#.{down}": "blocks.#.mlp.weights.#[2].T",
    }


NAMES: Names = llama.NAMES | experts()


def shape(config: dict) -> Shape:
    s = llama.shape({"rms_norm_eps": 1e-5, **config, "mlp_bias": False})
    active, renormalise = config.get("num_experts_per_tok", 8), bool(config.get("norm_topk_prob", False))
    mixture = Mixture(config["num_experts"], active, s.hidden, renormalise)
    return replace(s, qk_norm="all", clip=config.get("clip_qkv"), mixture=mixture)


FAMILY = Family("olmoe", shape, NAMES, prefix="model.")
