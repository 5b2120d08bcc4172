"""LLaDA (2502.09992): a bidirectional Llama under OLMo's names, in which two different modules are called ff_out."""

from __future__ import annotations

from ..attention import Attention
from ..nn.transformer import Shape
from . import Family, Names, mask_of, only

NAMES: Names = {
    "model.transformer.wte": "embed",
    "model.transformer.ln_f": "norm",
    "model.transformer.ff_out": "head",
    "model.transformer.blocks.#.attn_norm": "blocks.#.norm_1",
    "model.transformer.blocks.#.ff_norm": "blocks.#.norm_2",
    "model.transformer.blocks.#.q_proj": "blocks.#.attention.q",
    "model.transformer.blocks.#.k_proj": "blocks.#.attention.k",
    "model.transformer.blocks.#.v_proj": "blocks.#.attention.v",
    "model.transformer.blocks.#.attn_out": "blocks.#.attention.out",
    "model.transformer.blocks.#.ff_proj": "blocks.#.mlp.gate",
    "model.transformer.blocks.#.up_proj": "blocks.#.mlp.up",
    "model.transformer.blocks.#.ff_out": "blocks.#.mlp.down",
}


def shape(config: dict) -> Shape:
    only(config, "block_type", ("llama",), "llama")
    only(config, "activation_type", ("silu",), "silu")
    only(config, "layer_norm_type", ("rms",), "rms")
    for off in ("alibi", "attention_layer_norm", "input_emb_norm", "scale_logits", "multi_query_attention"):
        only(config, off, (False, None), False)
    width, heads = config["d_model"], config["n_heads"]
    everywhere = {"qkv", "out", "mlp"} if config.get("include_bias") else set()
    return Shape(
        vocab=config.get("embedding_size") or config["vocab_size"],
        width=width,
        layers=config["n_layers"],
        heads=heads,
        kv_heads=config.get("n_kv_heads") or heads,
        hidden=config.get("mlp_hidden_size") or config["mlp_ratio"] * width,
        head_size=width // heads,
        mask_id=mask_of(config, 126336),
        context=config.get("max_sequence_length", 4096),
        theta=float(config.get("rope_theta", 1e4)),
        eps=config.get("rms_norm_eps", 1e-5),
        biases=frozenset(everywhere | ({"qkv"} if config.get("include_qkv_bias") else set())),
        clip=config.get("clip_qkv"),
        tied=bool(config.get("weight_tying", False)),
    )


FAMILY = Family(
    "llada",
    shape,
    NAMES,
    prefix="model.",
    attention=lambda config: Attention("full"),
    rows=("vocab_size", "embedding_size"),
    head="model.transformer.ff_out.weight",
)
