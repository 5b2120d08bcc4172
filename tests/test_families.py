"""The one backbone gives the published models' own numbers, causal and bidirectional."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unveil import families
from unveil.context import Context
from unveil.hub import load_model, save
from unveil.rules import causal, not_later

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
PARENTS = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied": ("GPT2", {**GPT2, "n_inner": 40, "tie_word_embeddings": False}),
    "llama": ("Llama", SMALL),
    "llama-tied": ("Llama", {**SMALL, "tie_word_embeddings": True, "head_dim": 16}),
    "llama-biased": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama-3": ("Llama", {**SMALL, "rope_scaling": LLAMA_3, "rope_theta": 500.0}),
    "llama-linear": ("Llama", {**SMALL, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": None}),
    "mistral-sliding": ("Mistral", {**SMALL, "sliding_window": 5}),
    "qwen2": ("Qwen2", SMALL),
    "qwen2-sliding": ("Qwen2", {**SMALL, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 8}),
    "olmoe": ("Olmoe", {**SMALL, **EXPERTS}),
    "olmoe-clipped": ("Olmoe", {**SMALL, **EXPERTS, "clip_qkv": 0.5, "norm_topk_prob": True}),
    "qwen3_moe": ("Qwen3Moe", {**SPARSE, "norm_topk_prob": True}),
    "qwen3_moe-mixed": ("Qwen3Moe", {**SPARSE, "decoder_sparse_step": 2, "norm_topk_prob": False}),
    "qwen3_moe-plain": ("Qwen3Moe", {**SPARSE, "mlp_only_layers": [0]}),
}


def theirs(kind, settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    config._attn_implementation = "eager" if "sliding_window" not in settings else "sdpa"
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.generation_config.pad_token_id = None
    return model


def everything(tokens):
    """A 4-D additive mask that hides nothing: what makes transformers look both ways."""
    return torch.zeros(len(tokens), 1, tokens.shape[1], tokens.shape[1])


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
    if "sliding" not in case:
        if case.startswith("gpt2"):
            reference.config._attn_implementation = "sdpa"  # the eager one is causal whatever the mask says
        close(model(tokens), reference(tokens, attention_mask=everything(tokens)).logits)

    save(model, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(reference)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in reference.state_dict().items())
    published, saved = (load_file(tmp_path / each / "model.safetensors") for each in ("theirs", "ours"))
    assert published.keys() == saved.keys()
    assert all(torch.equal(published[name], saved[name]) for name in saved)


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
    "dream": ("Qwen2", SMALL, {}, {"model_type": "Dream", "mask_token_id": 63}, "full", True),
    "diffugpt": ("GPT2", GPT2, WRAPPER, {}, "full", True),
    "diffullama": ("Llama", SMALL, {}, {"mask_token_id": 63, "_name_or_path": "x/diffullama"}, "full", True),
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
        ({"model_type": "gemma"}, "unknown family 'gemma'; there are: diffugpt, .*, sdar"),
        ({"model_type": None}, "names no model_type"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn' is not supported; there are"),
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


def test_mixed_sliding_layers_are_refused():
    config = {**SMALL, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}
    with pytest.raises(ValueError, match="in some layers only"):
        families.find(config).shape(config)
