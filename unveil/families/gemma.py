"""Gemma: Llama with GELU gates, norms whose weights count from 1, and embeddings times the root of their width."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Gains, Shape
from . import Family, llama, only


def shape(config: dict) -> Shape:
    # The older field says "gelu" in published configs and means the tanh form all the same.
    field = "hidden_activation" if config.get("hidden_activation") else "hidden_act"
    only(config, field, ("gelu_pytorch_tanh", *(("gelu",) if field == "hidden_act" else ())), "gelu_pytorch_tanh")
    s = llama.shape({"tie_word_embeddings": True, "head_dim": 256, **config, "hidden_act": "silu"})
    return replace(s, norm_offset=1.0, activation="gelu_tanh", gains=Gains(embedding=s.width**0.5))


FAMILY = Family("gemma", shape, llama.NAMES, prefix="model.")
