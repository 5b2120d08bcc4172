"""OLMo 3: OLMo 2 in which three layers of four see a window of positions."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, layer_types, olmo2, wide


def shape(config: dict) -> Shape:
    s = olmo2.shape(config)
    far = wide(layer_types(config, s.layers, 4))
    # Where the context was stretched, layers with a window were not.
    return replace(s, sliding=config.get("sliding_window", 4096), far=far, theta_near=s.theta)


FAMILY = Family("olmo3", shape, olmo2.NAMES, prefix="model.")
