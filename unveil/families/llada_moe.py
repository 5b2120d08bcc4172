"""LLaDA-MoE (2509.24389): bidirectional, OLMoE's names, queries and keys normalised per head."""

from __future__ import annotations

from dataclasses import replace

from ..attention import Attention
from ..nn.moe import Mixture
from ..nn.transformer import Shape
from . import Family, llama, mask_of, olmoe, only


def shape(config: dict) -> Shape:
    only(config, "moe_router_enable_expert_bias", (False, None), False)
    only(config, "moe_router_score_function", ("softmax", None), "softmax")
    expert = config["expert_intermediate_size"]
    dense = config.get("dense_intermediate_size", expert)
    s = llama.shape({"rms_norm_eps": 1e-5, **config, "intermediate_size": dense})
    sparse = config.get("moe_layer_freq") or [1] * s.layers
    mixture = Mixture(
        config["num_experts"],
        config.get("num_experts_per_tok", 8),
        expert,
        bool(config.get("norm_topk_prob", False)),
        frozenset(layer for layer, here in enumerate(sparse) if not here),
    )
    return replace(
        s,
        qk_norm="head" if config.get("qk_layernorm", True) else None,
        mask_id=mask_of(config, 156895),
        mixture=mixture,
    )


FAMILY = Family("llada_moe", shape, olmoe.NAMES, prefix="model.", attention=lambda config: Attention("full"))
