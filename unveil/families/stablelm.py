"""StableLM 2: Llama with LayerNorm and a quarter of each head turned."""

from __future__ import annotations

from dataclasses import replace

from ..nn.transformer import Shape
from . import Family, llama, only


def shape(config: dict) -> Shape:
    for off in ("qk_layernorm", "use_parallel_residual"):
        only(config, off, (False, None), False)
    s = llama.shape({**config, "partial_rotary_factor": 1.0, "attention_bias": False})
    return replace(
        s,
        eps=config.get("layer_norm_eps", 1e-5),
        biases=frozenset({"qkv"} if config.get("use_qkv_bias") else set()),
        norm="layer",
        turned=int(s.head_size * config.get("partial_rotary_factor", 0.25)),
    )


FAMILY = Family("stablelm", shape, llama.NAMES, prefix="model.")
