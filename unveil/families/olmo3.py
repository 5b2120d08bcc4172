"""OLMo 3: OLMo 2 in which three layers of four see a window of positions."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, olmo2, wide


def shape(config: dict) -> Shape:
    s = olmo2.shape(config)
    kinds = config.get("layer_types") or [
        "full_attention" if layer % 4 == 3 else "sliding_attention" for layer in range(s.layers)
    ]
    # Where the context was stretched, layers with a window were not.
    return replace(s, sliding=config.get("sliding_window", 4096), far=wide(kinds), theta_near=s.theta)


FAMILY = Family("olmo3", shape, olmo2.NAMES, prefix="model.")
