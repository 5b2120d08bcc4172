"""GPT-NeoX and Pythia: attention and feed-forward network side by side, a quarter of each head turned by position."""

from __future__ import annotations

from ..nn.transformer import Activation, Shape
from . import Family, Names, llama, only

LAYER = "gpt_neox.layers.#"
NAMES: Names = {
    "gpt_neox.embed_in": "embed",
    "gpt_neox.final_layer_norm": "norm",
    "embed_out": "head",
    f"{LAYER}.input_layernorm": "blocks.#.norm_1",
    f"{LAYER}.post_attention_layernorm": "blocks.#.norm_2",
    f"{LAYER}.attention.query_key_value": tuple(f"blocks.#.attention.{each}.H" for each in "qkv"),
    f"{LAYER}.attention.dense": "blocks.#.attention.out",
    f"{LAYER}.mlp.dense_h_to_4h": "blocks.#.mlp.up",
    f"{LAYER}.mlp.dense_4h_to_h": "blocks.#.mlp.down",
}
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def shape(config: dict) -> Shape:
    only(config, "hidden_act", tuple(ACTIVATIONS), "gelu")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    rotary = config.get("rope_parameters") or {}
    share = config.get("rotary_pct", rotary.get("partial_rotary_factor", 0.25))
    theta = config.get("rotary_emb_base", config.get("rope_theta", rotary.get("rope_theta", 1e4)))
    return Shape(
        vocab=config["vocab_size"],
        width=width,
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=heads,
        hidden=config["intermediate_size"],
        head_size=width // heads,
        context=config.get("max_position_embeddings", 2048),
        theta=float(theta),
        stretch=llama.stretch(config),
        turned=int(width // heads * share),
        eps=config.get("layer_norm_eps", 1e-5),
        biases=frozenset({"mlp"} | ({"qkv", "out"} if config.get("attention_bias", True) else set())),
        norm="layer",
        order="parallel" if config.get("use_parallel_residual", True) else "pre",
        activation=ACTIVATIONS[config.get("hidden_act", "gelu")],
        gated=False,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


FAMILY = Family("gpt_neox", shape, NAMES, prefix="gpt_neox.", head="embed_out.weight")
