"""Qwen3 with experts in most layers."""

from __future__ import annotations

from dataclasses import replace

from ..nn.moe import Mixture
from ..nn.transformer import Shape
from . import Family, llama, olmoe


def shape(config: dict) -> Shape:
    s = llama.shape(config)
    every, plain = config.get("decoder_sparse_step", 1), set(config.get("mlp_only_layers") or [])
    dense = frozenset(layer for layer in range(s.layers) if layer in plain or (layer + 1) % every)
    mixture = Mixture(
        config["num_experts"],
        config.get("num_experts_per_tok", 8),
        config["moe_intermediate_size"],
        bool(config.get("norm_topk_prob", False)),
        dense,
    )
    sliding = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    return replace(s, qk_norm="head", sliding=sliding, mixture=mixture)


FAMILY = Family("qwen3_moe", shape, olmoe.NAMES, prefix="model.")
