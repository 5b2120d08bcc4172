"""The one backbone gives the published models' own numbers, causal and bidirectional."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unveil import families
from unveil.attention import Attention
from unveil.context import Context
from unveil.evaluate.likelihood import score
from unveil.hub import fresh, load_model, save
from unveil.nn.grow import add_mask
from unveil.nn.shift import Shifted
from unveil.objectives import Batch
from unveil.rules import causal, not_later
from unveil.sample import generate

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
SPARSE = {**SMALL, **EXPERTS, "moe_intermediate_size": 24, "head_dim": 8, "decoder_sparse_step": 1}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LIMITS = {"beta_fast": 2.0, "beta_slow": 0.25, "truncate": False}
LINEAR = {"rope_type": "linear", "factor": 4.0}
GEMMA_3 = {**SMALL, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 12}
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 5.0}
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
PHI_3 = {**SMALL, "pad_token_id": 0}
PARENTS = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied": ("GPT2", {**GPT2, "n_inner": 40, "tie_word_embeddings": False}),
    "llama": ("Llama", SMALL),
    "llama-tied": ("Llama", {**SMALL, "tie_word_embeddings": True, "head_dim": 16}),
    "llama-biased": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama-3": ("Llama", {**SMALL, "rope_scaling": LLAMA_3, "rope_theta": 500.0}),
    "llama-linear": ("Llama", {**SMALL, "rope_scaling": LINEAR}),
    "llama-yarn": ("Llama", {**SMALL, "rope_scaling": YARN}),
    "llama-yarn-given": ("Llama", {**SMALL, "rope_scaling": {**YARN, **LIMITS, "attention_factor": 1.5}}),
    "llama-yarn-scaled": ("Llama", {**SMALL, "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 2.0}}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": None}),
    "mistral-sliding": ("Mistral", {**SMALL, "sliding_window": 5}),
    "qwen2": ("Qwen2", SMALL),
    "qwen2-sliding": ("Qwen2", {**SMALL, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    "qwen2-sliding-mixed": (
        "Qwen2",
        {**SMALL, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 8}),
    "olmoe": ("Olmoe", {**SMALL, **EXPERTS}),
    "olmoe-clipped": ("Olmoe", {**SMALL, **EXPERTS, "clip_qkv": 0.5, "norm_topk_prob": True}),
    "qwen3_moe": ("Qwen3Moe", {**SPARSE, "norm_topk_prob": True}),
    "qwen3_moe-mixed": ("Qwen3Moe", {**SPARSE, "decoder_sparse_step": 2, "norm_topk_prob": False}),
    "qwen3_moe-plain": ("Qwen3Moe", {**SPARSE, "mlp_only_layers": [0]}),
    "gpt_neox": ("GPTNeoX", {**NEOX, "rotary_pct": 0.5}),
    "gpt_neox-one-after-the-other": ("GPTNeoX", {**NEOX, "use_parallel_residual": False, "attention_bias": False}),
    "gpt_neox-new": ("GPTNeoX", {**NEOX, "hidden_act": "gelu_new", "rotary_emb_base": 500, "rotary_pct": 1.0}),
    "mixtral": ("Mixtral", {**SMALL, "num_local_experts": 6, "num_experts_per_tok": 2}),
    "phi3": ("Phi3", PHI_3),
    "phi3-partly": ("Phi3", {**PHI_3, "partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    "phi3-sliding": ("Phi3", {**PHI_3, "sliding_window": 5}),
    "olmo2": ("Olmo2", SMALL),
    "olmo3": ("Olmo3", {**SMALL, "num_hidden_layers": 4, "sliding_window": 5}),
    "olmo3-stretched": ("Olmo3", {**SMALL, "num_hidden_layers": 4, "sliding_window": 5, "rope_scaling": YARN}),
    "starcoder2": ("Starcoder2", SMALL),
    "starcoder2-unbiased": ("Starcoder2", {**SMALL, "use_bias": False, "tie_word_embeddings": False}),
    "starcoder2-sliding": ("Starcoder2", {**SMALL, "sliding_window": 5}),
    "ernie4_5": ("Ernie4_5", {**SMALL, "head_dim": 16}),
    "ernie4_5-biased": ("Ernie4_5", {**SMALL, "use_bias": True, "tie_word_embeddings": False}),
    "glm4": ("Glm4", {**PHI_3, "head_dim": 8, "eos_token_id": 1}),
    "exaone4": ("Exaone4", {**SMALL, "sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "exaone4-mixed": ("Exaone4", {**SMALL, "num_hidden_layers": 4, "sliding_window": 5}),
    "stablelm": ("StableLm", SMALL),
    "stablelm-biased": ("StableLm", {**SMALL, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "smollm3": ("SmolLM3", {**SMALL, "num_hidden_layers": 5, "pad_token_id": 0}),
    "smollm3-listed": ("SmolLM3", {**SMALL, "no_rope_layers": [0, 1, 0], "pad_token_id": 0}),
    "granite": ("Granite", {**SMALL, **GRANITE}),
    "gemma": ("Gemma", {**SMALL, "head_dim": 16}),
    "gemma3_text": ("Gemma3", {**GEMMA_3, "sliding_window_pattern": 2}),
    "gemma3_text-near": ("Gemma3", {**GEMMA_3, "rope_local_base_freq": 100.0}),
    "gemma3_text-stretched": ("Gemma3", {**GEMMA_3, "sliding_window_pattern": 3, "rope_scaling": LINEAR}),
}


def theirs(kind, settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}{'Text' if kind == 'Gemma3' else ''}Config")(**settings)
    config._attn_implementation = "eager" if "sliding_window" not in settings else "sdpa"
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # scores that are chosen by stay above 0
            torch.nn.init.uniform_(bias, 0, 0.5)
    model.generation_config.pad_token_id = None
    return model


def everything(tokens, window=None, kinds=False):
    """A 4-D additive mask that hides nothing: what makes transformers look both ways.

    With a window it hides what is further away, in the layers of the kind that has one where there are `kinds`.
    """
    size = tokens.shape[1]
    far = (torch.arange(size)[:, None] - torch.arange(size)).abs() >= (window or size)
    near = torch.zeros(size, size).masked_fill(far, -torch.inf).expand(len(tokens), 1, size, size)
    return {"full_attention": torch.zeros_like(near), "sliding_attention": near} if kinds else near


def close(ours, reference):
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return torch.randint(0, 64, (2, 13))


@pytest.mark.parametrize("case", PARENTS)
@torch.no_grad()
def test_parents(case, tokens, tmp_path):
    reference = theirs(*PARENTS[case])
    reference.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    assert model.family == case.split("-")[0]
    assert (model.mask_id, model.attention.kind, model.shifted, model.training) == (-1, "causal", False, False)
    close(model(tokens, Context(rule=causal)), reference(tokens).logits)
    if case.startswith("gpt2"):
        reference.config._attn_implementation = "sdpa"  # the eager one is causal whatever the mask says
    mask = everything(tokens, PARENTS[case][1].get("sliding_window"), hasattr(reference.config, "layer_types"))
    close(model(tokens), reference(tokens, attention_mask=mask).logits)

    save(model, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(reference)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in reference.state_dict().items())
    published, saved = (load_file(tmp_path / each / "model.safetensors") for each in ("theirs", "ours"))
    assert published.keys() == saved.keys()
    assert all(torch.equal(published[name], saved[name]) for name in saved)


@pytest.mark.parametrize("case", [case for case in PARENTS if case in families.known()])
@torch.no_grad()
def test_parents_become_leader_models(case, tokens, tmp_path):
    """Each can be given a mask, scored in two copies, decoded from an exact store, saved and loaded again."""
    kind, settings = PARENTS[case]
    model = fresh(theirs(kind, settings).config.to_dict())
    assert model(tokens).isfinite().all()
    add_mask(model)
    for p in model.parameters():
        p.mul_(5 if p.dim() > 1 else 1)
    model.attention, model.bos_id = Attention("leader", 4), 0
    denoiser = Shifted(model)
    found = generate(denoiser, tokens, 9, "threshold(tau=0.1)", cache="causal", block=4)
    assert torch.equal(found, generate(denoiser, tokens, 9, "threshold(tau=0.1)", block=4))
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    exact, bound = score(denoiser, batch, mode="exact"), score(denoiser, batch, mode="bound", block=1)
    assert bound.nats == pytest.approx(exact.nats, rel=1e-5)  # blocks of a leader and nothing else
    assert score(denoiser, batch, draws=2).nats > 0
    again = load_model(save(denoiser, tmp_path / "ours"))
    assert (again.mask_id, again.shifted) == (64, True)
    assert torch.equal(again(tokens), denoiser(tokens))


LLADA = {
    "model.embed_tokens.": "model.transformer.wte.",
    "model.norm.": "model.transformer.ln_f.",
    "lm_head.": "model.transformer.ff_out.",
    "model.layers.": "model.transformer.blocks.",
    ".input_layernorm.": ".attn_norm.",
    ".post_attention_layernorm.": ".ff_norm.",
    ".self_attn.o_proj.": ".attn_out.",
    ".self_attn.": ".",
    ".mlp.gate_proj.": ".ff_proj.",
    ".mlp.up_proj.": ".up_proj.",
    ".mlp.down_proj.": ".ff_out.",
}
LLADA_2 = {
    "model.embed_tokens.": "model.word_embeddings.",
    ".self_attn.o_proj.": ".attention.dense.",
    ".self_attn.q_norm.": ".attention.query_layernorm.",
    ".self_attn.k_norm.": ".attention.key_layernorm.",
    ".gate.e_score_correction_bias": ".gate.expert_bias",
}
GLM = {
    **SMALL,
    "head_dim": 8,
    "use_qk_norm": True,
    "moe_intermediate_size": 24,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
}
LLADA_2_CONFIG = {
    **SMALL,
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "head_dim": 8,
    "moe_intermediate_size": 24,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "num_shared_experts": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "use_bias": False,
    "mask_token_id": 63,
}
WRAPPER = {"transformer.wte.": "embed_tokens.", "transformer.": "denoise_model."}
LLADA_CONFIG = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 48,
    "vocab_size": 64,
    "embedding_size": 64,
    "block_type": "llama",
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "mask_token_id": 63,
    "weight_tying": False,
}
MOE_CONFIG = {
    **{key: value for key, value in SPARSE.items() if key not in ("moe_intermediate_size", "intermediate_size")},
    "model_type": "llada",
    "architectures": ["LLaDAMoEModelLM"],
    "expert_intermediate_size": 24,
    "dense_intermediate_size": 48,
    "norm_topk_prob": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "mask_token_id": 63,
}
FEW_HEADS = {**SMALL, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
PUBLISHED = {  # family: the parent that computes the same, what to rename, the config (None: the parent's), attention
    "llada": ("Llama", FEW_HEADS, LLADA, LLADA_CONFIG, "full", False),
    "llada_moe": ("Qwen3Moe", {**SPARSE, "norm_topk_prob": False}, {}, MOE_CONFIG, "full", False),
    "llada2_moe": ("Glm4Moe", GLM, LLADA_2, LLADA_2_CONFIG, "block", False),
    "dream": ("Qwen2", SMALL, {}, {"model_type": "Dream", "mask_token_id": 63}, "full", True),
    "fast_dllm_qwen": ("Qwen2", SMALL, {}, {"model_type": "Fast_dLLM_Qwen", "mask_token_id": 63}, "block", True),
    "diffugpt": ("GPT2", GPT2, WRAPPER, {}, "full", True),
    "diffullama": ("Llama", SMALL, {}, {"mask_token_id": 63, "_name_or_path": "x/diffullama"}, "full", True),
    "rnd1": ("Qwen3Moe", {**SPARSE, "norm_topk_prob": True}, {}, {"model_type": "rnd1"}, "full", True),
    "sdar_moe": ("Qwen3Moe", {**SPARSE, "norm_topk_prob": True}, {}, {"model_type": "sdar_moe"}, "block", False),
    "sdar": ("Qwen3", {**SMALL, "head_dim": 8}, {}, {"model_type": "sdar", "mask_token_id": 63}, "block", False),
}


def publish(folder, family):
    """A tiny checkpoint in the layout of a family that transformers does not have, and a twin that it has."""
    kind, settings, rename, changes, *_ = PUBLISHED[family]
    twin = theirs(kind, settings)
    twin.save_pretrained(folder)
    config = changes if "architectures" in changes else {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for old, new in rename.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    for name in [name for name in tensors if family == "llada2_moe" and name.endswith("q_proj.weight")]:
        parts = [tensors.pop(name.replace("q_proj", f"{each}_proj")) for each in "qkv"]
        tensors[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return twin, tensors


@pytest.mark.parametrize("family", PUBLISHED)
@torch.no_grad()
def test_published_diffusion_models(family, tokens, tmp_path):
    *_, kind, shifted = PUBLISHED[family]
    twin, tensors = publish(tmp_path, family)
    bare = load_model(tmp_path, raw=True, mask_id=63)
    assert (bare.family, bare.mask_id, bare.attention.kind, bare.shifted) == (family, 63, kind, False)
    close(bare(tokens, Context(rule=causal)), twin(tokens).logits)
    twin.config._attn_implementation = "sdpa"
    expected = twin(tokens, attention_mask=everything(tokens)).logits
    close(bare(tokens), expected)

    model = load_model(tmp_path, mask_id=63)
    assert (model.shifted, model.attention, model.mask_id) == (shifted, bare.attention, 63)
    if shifted:
        expected = torch.cat([expected[:, :1], expected[:, :-1]], dim=1)
    close(model(tokens), expected)

    save(model, tmp_path / "ours")
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensors[name]) for name in saved)
    again = load_model(tmp_path / "ours")
    assert (again.shifted, again.attention, again.mask_id) == (model.shifted, model.attention, 63)
    assert torch.equal(again(tokens), model(tokens))


@torch.no_grad()
def test_a_routers_bias_stays_exact_in_bfloat16(tokens, tmp_path):
    _, tensors = publish(tmp_path, "llada2_moe")
    model = load_model(tmp_path, dtype="bfloat16", mask_id=63)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {"blocks.1.mlp.bias", "blocks.2.mlp.bias"}
    assert model(tokens).dtype == torch.bfloat16
    saved = load_file(save(model, tmp_path / "ours") / "model.safetensors")
    name = "model.layers.1.mlp.gate.expert_bias"
    assert torch.equal(saved[name], tensors[name])


@torch.no_grad()
def test_block_attention_equals_a_mask(tokens, tmp_path):
    twin, _ = publish(tmp_path, "sdar")
    model = load_model(tmp_path)
    assert model.attention.block == 4
    at = torch.arange(13) // 4
    mask = torch.where(at[None] <= at[:, None], 0.0, -torch.inf).expand(2, 1, 13, 13)
    close(model(tokens, Context(rule=not_later(4))), twin(tokens, attention_mask=mask).logits)


@pytest.mark.parametrize(("rows", "mask"), [(50257, 10541), (50258, 50257)])
def test_diffugpt_masks_follow_its_rows(rows, mask, tmp_path):
    """The medium model's config may state its parent's vocabulary."""
    config = {"n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 8, "vocab_size": 50257}
    reference = theirs("GPT2", {**config, "vocab_size": rows})
    tensors = {name: value for name, value in reference.state_dict().items() if name != "lm_head.weight"}
    for old, new in WRAPPER.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()  # a repeated tied head
    tensors["denoise_model.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(tmp_path)
    assert (model.mask_id, model.model.s.vocab, model.shifted) == (mask, rows, True)


def test_names_without_prefix(tokens, tmp_path):
    """OpenAI's own GPT-2 was saved without its head."""
    reference = theirs("GPT2", GPT2)
    reference.transformer.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        close(load_model(tmp_path)(tokens, Context(rule=causal)), reference(tokens).logits)


def test_all_families_are_tested():
    tested = {case.split("-")[0] for case in PARENTS} | set(PUBLISHED)
    assert set(families.known()) == tested


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "rwkv"}, "unknown family 'rwkv'; there are: diffugpt, .*, sdar"),
        ({"model_type": None}, "names no model_type"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope scaling 'dynamic' is not supported; there are"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": ...}, "lacks 'hidden_size', which the family llama needs"),
    ],
)
def test_what_cannot_be_computed_is_refused(change, message, tmp_path):
    theirs("Llama", SMALL).save_pretrained(tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)
