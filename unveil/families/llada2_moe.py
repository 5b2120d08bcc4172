"""LLaDA 2 (2512.15745): Ling 2 read block by block; experts by a sigmoid router in groups, and a shared one."""

from __future__ import annotations

from dataclasses import replace

from ..attention import Attention
from ..nn.moe import Mixture
from ..nn.transformer import Shape
from . import Family, Names, llama, mask_of, olmoe, only

LAYER = "model.layers.#"
NAMES: Names = llama.renamed(
    olmoe.experts()
    | {
        "model.word_embeddings": "embed",
        f"{LAYER}.attention.query_key_value": tuple(f"blocks.#.attention.{each}" for each in "qkv"),
        f"{LAYER}.attention.query_layernorm": "blocks.#.attention.q_norm",
        f"{LAYER}.attention.key_layernorm": "blocks.#.attention.k_norm",
        f"{LAYER}.attention.dense": "blocks.#.attention.out",
        f"{LAYER}.mlp.gate.expert_bias": "blocks.#.mlp.bias.P",
        **{f"{LAYER}.mlp.shared_experts.{each}_proj": f"blocks.#.mlp.shared.{each}" for each in ("gate", "up", "down")},
    }
)


def shape(config: dict) -> Shape:
    only(config, "score_function", ("sigmoid", None), "sigmoid")
    only(config, "norm_head", (False, None), False)
    only(config, "use_sliding_window", (False, None), False)
    hidden = config["moe_intermediate_size"]
    s = llama.shape({**config, "intermediate_size": config.get("intermediate_size") or hidden, **PLAIN})
    share = config.get("rotary_dim") or int(s.head_size * config.get("partial_rotary_factor", 0.5))
    mixture = Mixture(
        config["num_experts"],
        active := config.get("num_experts_per_tok", 8),
        hidden,
        active > 1 and config.get("norm_topk_prob", True),
        frozenset(range(config.get("first_k_dense_replace", 0))),
        score="sigmoid",
        biased=config.get("moe_router_enable_expert_bias", True),
        groups=config.get("n_group", 8),
        open=config.get("topk_group", 4),
        scale=float(config.get("routed_scaling_factor", 2.5)),
        shared=hidden * (config.get("num_shared_experts") or 0),
    )
    biases = {"qkv"} if config.get("use_qkv_bias") else set()
    return replace(
        s,
        mask_id=mask_of(config, 156895),
        biases=frozenset(biases | ({"out"} if config.get("use_bias") else set())),
        qk_norm="head" if config.get("use_qk_norm", True) else None,
        turned=share,
        mixture=mixture,
    )


PLAIN = {"attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}


def attention(config: dict) -> Attention:
    return Attention("block", config.get("block_length") or config.get("block_size") or 32)


FAMILY = Family("llada2_moe", shape, NAMES, prefix="model.", attention=attention)
