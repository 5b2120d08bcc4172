"""GPT-2, whose linear layers are stored (in, out) and whose queries, keys and values are one tensor."""

from __future__ import annotations

from ..nn.transformer import Shape
from . import Family, Names, only


def names(body: str, embed: str) -> Names:
    """The same tensors under other names, for those who wrapped GPT-2."""
    qkv = tuple(f"blocks.#.attention.{each}.T" for each in "qkv")
    return {
        embed: "embed",
        f"{body}wpe": "places",
        f"{body}ln_f": "norm",
        "lm_head": "head",
        f"{body}h.#.ln_1": "blocks.#.norm_1",
        f"{body}h.#.ln_2": "blocks.#.norm_2",
        f"{body}h.#.attn.c_attn": qkv,
        f"{body}h.#.attn.c_proj": "blocks.#.attention.out.T",
        f"{body}h.#.mlp.c_fc": "blocks.#.mlp.up.T",
        f"{body}h.#.mlp.c_proj": "blocks.#.mlp.down.T",
    }


NAMES = names("transformer.", "transformer.wte")


def shape(config: dict) -> Shape:
    only(config, "activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    only(config, "scale_attn_weights", (True,), True)
    only(config, "scale_attn_by_inverse_layer_idx", (False,), False)
    only(config, "add_cross_attention", (False,), False)
    width, heads = config["n_embd"], config["n_head"]
    return Shape(
        vocab=config["vocab_size"],
        width=width,
        layers=config["n_layer"],
        heads=heads,
        kv_heads=heads,
        hidden=config.get("n_inner") or 4 * width,
        head_size=width // heads,
        context=config.get("n_positions", 1024),
        eps=config.get("layer_norm_epsilon", 1e-5),
        biases=frozenset({"qkv", "out", "mlp"}),
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        learned=True,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


FAMILY = Family("gpt2", shape, NAMES, prefix="transformer.")
