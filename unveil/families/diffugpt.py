"""DiffuGPT (2410.17891): GPT-2 adapted with the shift kept, under the names of its authors' wrapper."""

from __future__ import annotations

from dataclasses import replace

from ..attention import Attention
from ..nn.transformer import Shape
from . import Family, gpt2

MASKS = {50257: 10541, 50258: 50257}  # rows: the small model reuses a rare token, the medium one has a row of its own


def shape(config: dict) -> Shape:
    s = gpt2.shape(config)
    return replace(s, mask_id=MASKS.get(s.vocab, -1))


FAMILY = Family(
    "diffugpt",
    shape,
    gpt2.names("denoise_model.", "embed_tokens"),
    attention=lambda config: Attention("full"),
    shifted=True,
    counted="embed_tokens.weight",  # the medium model's config may be that of its parent, without the mask's row
)
