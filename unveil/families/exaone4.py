"""EXAONE 4: OLMo 2 with norms per head; in larger ones a window in three layers of four, no positions in the rest."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, layer_types, llama, olmo2, wide


def shape(config: dict) -> Shape:
    s = replace(llama.shape({"rms_norm_eps": 1e-5, **config}), order="post", qk_norm="head")
    window, every = config.get("sliding_window"), config.get("sliding_window_pattern") or 4
    if window is None:
        return s
    every = len(every) if isinstance(every, str) else every  # "LLLG" stands for 4
    far = wide(layer_types(config, s.layers, every))
    return replace(s, sliding=window, far=far, unturned=far)


FAMILY = Family("exaone4", shape, olmo2.NAMES, prefix="model.")
