"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from dataclasses import replace

from ..nn.moe import Mixture
from ..nn.transformer import Shape
from . import Family, Names, llama, olmoe

NAMES: Names = llama.NAMES | olmoe.experts("block_sparse_moe", "w1", "w3", "w2")


def shape(config: dict) -> Shape:
    s = llama.shape({"rms_norm_eps": 1e-5, **config})
    mixture = Mixture(config.get("num_local_experts", 8), config.get("num_experts_per_tok", 2), s.hidden, True)
    return replace(s, theta=llama.theta(config, 1e6), sliding=config.get("sliding_window"), mixture=mixture)


FAMILY = Family("mixtral", shape, NAMES, prefix="model.")
