"""Granite 3: Llama with constants before embeddings, residuals, scores and logits."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Gains, Shape
from . import Family, llama


def shape(config: dict) -> Shape:
    s = llama.shape(config)
    gains = Gains(
        embedding=float(config.get("embedding_multiplier", 1.0)),
        residual=float(config.get("residual_multiplier", 1.0)),
        queries=float(config.get("attention_multiplier", 1.0)) * s.head_size**0.5,
        logits=1 / float(config.get("logits_scaling", 1.0)),
    )
    return replace(s, gains=gains)


FAMILY = Family("granite", shape, llama.NAMES, prefix="model.")
