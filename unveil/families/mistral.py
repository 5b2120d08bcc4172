"""Mistral: Llama whose positions may see no further back than a window."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, llama


def shape(config: dict) -> Shape:
    return replace(llama.shape(config), sliding=config.get("sliding_window", 4096))


FAMILY = Family("mistral", shape, llama.NAMES, prefix="model.")
