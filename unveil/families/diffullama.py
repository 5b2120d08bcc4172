"""DiffuLLaMA (2410.17891): Llama 2 made bidirectional with the shift kept; its mask is a reused rare token."""

from __future__ import annotations

from dataclasses import replace

from ..attention import Attention
from ..nn.transformer import Shape
from . import Family, llama, mask_of


def shape(config: dict) -> Shape:
    return replace(llama.shape(config), mask_id=mask_of(config, 811))


FAMILY = Family(
    "diffullama",
    shape,
    llama.NAMES,
    prefix="model.",
    attention=lambda config: Attention("full"),
    shifted=True,
)
