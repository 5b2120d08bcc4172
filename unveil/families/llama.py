"""Llama, and the names most others copied."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from ..nn.transformer import Shape, Stretch
from . import Family, Names, only

NAMES: Names = {
    "model.embed_tokens": "embed",
    "model.norm": "norm",
    "lm_head": "head",
    "model.layers.#.input_layernorm": "blocks.#.norm_1",
    "model.layers.#.post_attention_layernorm": "blocks.#.norm_2",
    "model.layers.#.self_attn.q_proj": "blocks.#.attention.q",
    "model.layers.#.self_attn.k_proj": "blocks.#.attention.k",
    "model.layers.#.self_attn.v_proj": "blocks.#.attention.v",
    "model.layers.#.self_attn.o_proj": "blocks.#.attention.out",
    "model.layers.#.self_attn.q_norm": "blocks.#.attention.q_norm",
    "model.layers.#.self_attn.k_norm": "blocks.#.attention.k_norm",
    "model.layers.#.mlp.gate_proj": "blocks.#.mlp.gate",
    "model.layers.#.mlp.up_proj": "blocks.#.mlp.up",
    "model.layers.#.mlp.down_proj": "blocks.#.mlp.down",
}


def renamed(new: Names) -> Names:
    """Llama's names, but for the modules that `new` names."""
    named = {
        re.sub(r"\.[THR]$", "", each)
        for ours in new.values()
        for each in (ours if isinstance(ours, tuple) else (ours,))
    }
    return {theirs: ours for theirs, ours in NAMES.items() if ours not in named} | new


def theta(config: dict, usual: float = 1e4) -> float:
    """`rope_theta`, which newer configs put into `rope_parameters`."""
    return float(config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", usual))


def stretch(config: dict) -> Stretch | None:
    """`rope_scaling`, or `rope_parameters` as newer configs call it."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return Stretch("linear", float(given["factor"]))
    if kind == "llama3":
        low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
        return Stretch("llama3", float(given["factor"]), low, high, int(given["original_max_position_embeddings"]))
    if kind == "yarn":
        low, high = float(given.get("beta_slow") or 1), float(given.get("beta_fast") or 32)
        original = given.get("original_max_position_embeddings") or config["max_position_embeddings"]
        whole = given.get("truncate", True)
        return Stretch("yarn", float(given["factor"]), low, high, int(original), yarn_gain(given), whole)
    raise ValueError(f"rope scaling {kind!r} is not supported; there are: default, linear, llama3, yarn")


def yarn_gain(given: dict) -> float:
    """What YaRN multiplies cosines and sines by: its formula for the temperature (2309.00071, 3.4) unless given."""

    def root(weight: float) -> float:
        return 0.1 * weight * math.log(given["factor"]) + 1.0 if given["factor"] > 1 else 1.0

    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if given.get("mscale") and given.get("mscale_all_dim"):
        return root(given["mscale"]) / root(given["mscale_all_dim"])
    return root(1.0)


def shape(config: dict) -> Shape:
    only(config, "hidden_act", ("silu",), "silu")
    only(config, "partial_rotary_factor", (1.0, None), None)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    biases = {"qkv", "out"} if config.get("attention_bias") else set()
    return Shape(
        vocab=config["vocab_size"],
        width=width,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        hidden=config["intermediate_size"],
        head_size=config.get("head_dim") or width // heads,
        context=config.get("max_position_embeddings", 2048),
        theta=theta(config),
        stretch=stretch(config),
        eps=config.get("rms_norm_eps", 1e-6),
        biases=frozenset(biases | ({"mlp"} if config.get("mlp_bias") else set())),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def describe(s: Shape) -> dict:
    """The config.json of a network that was not loaded from one."""
    told = ("vocab", "width", "layers", "heads", "kv_heads", "hidden", "head_size", "context", "theta", "eps", "tied")
    if replace(s, mask_id=-1) != Shape(**{name: getattr(s, name) for name in told}):
        raise ValueError("only a plain Llama shape can be described; give other networks a config of their family")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": s.vocab,
        "hidden_size": s.width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "intermediate_size": s.hidden,
        "head_dim": s.head_size,
        "max_position_embeddings": s.context,
        "rope_theta": s.theta,
        "rms_norm_eps": s.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": s.tied,
    }


FAMILY = Family("llama", shape, NAMES, prefix="model.")
