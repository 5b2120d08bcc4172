"""ERNIE 4.5, the dense ones: Llama whose rotary pairs lie side by side."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, Names, llama

PAIRS: Names = {f"model.layers.#.self_attn.{each}_proj": f"blocks.#.attention.{each}.R" for each in "qk"}


def shape(config: dict) -> Shape:
    s = llama.shape({"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "head_dim": 128, **config})
    return replace(s, biases=frozenset({"qkv", "out", "mlp"} if config.get("use_bias") else set()))


FAMILY = Family("ernie4_5", shape, llama.renamed(PAIRS), prefix="model.")
