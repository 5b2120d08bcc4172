"""Checkpoints go out and come back bit for bit, and what is wrong with one is said in one sentence."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from unveil import folder as folders
from unveil import hub
from unveil.attention import Attention
from unveil.codecs.text import Text
from unveil.context import Context
from unveil.hub import fresh, load, load_model, save
from unveil.nn.grow import add_mask
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Shape, Transformer
from unveil.rules import causal

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
STORIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"


def text_of(size):
    words = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, size)}}
    return Text(Tokenizer(WordLevel(words, unk_token="</s>")), special={"bos": "<s>", "eos": "</s>"})


@pytest.fixture
def model():
    return fresh(LLAMA, seed=3)


@pytest.fixture
def saved(model, tmp_path):
    return save(model, tmp_path / "model", text_of(24))


def rewrite(folder, change):
    """Alter the tensors of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# There and back


def test_random_weights_follow_the_seed(model):
    assert equal(model, fresh(LLAMA, seed=3))
    assert not equal(model, fresh(LLAMA, seed=4))
    assert model.head.weight is model.embed.weight
    before = torch.random.get_rng_state()
    fresh(LLAMA)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bit_for_bit(model, dtype, tmp_path):
    model.to(hub.DTYPES[dtype])
    folder = save(model, tmp_path / "deep" / "model")
    again = load_model(folder, dtype="auto")
    assert equal(model, again)
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())
    assert again.head.weight is again.embed.weight
    assert load_model(folder).embed.weight.dtype == torch.float32
    assert load_model(folder, dtype=torch.float16).embed.weight.dtype == torch.float16
    assert sorted(os.listdir(folder.parent)) == ["model"]


def test_a_leader_model_comes_back_whole(model, tmp_path):
    mask = add_mask(model)
    model.attention = Attention("leader", 16)
    folder = save(Shifted(model), tmp_path / "m", unveil={"recipe": "leader", "tokens_seen": 123, "shift": False})
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == 25
    assert config["unveil"] == {
        "recipe": "leader",
        "tokens_seen": 123,
        "attention": "leader",
        "block": 16,
        "shift": True,
        "mask_id": mask,
    }
    again = load_model(folder)
    assert isinstance(again, Shifted)
    assert equal(again.model, model)
    assert (again.mask_id, again.attention, again.shifted) == (24, Attention("leader", 16), True)
    raw = load_model(folder, raw=True)
    assert isinstance(raw, Transformer)
    assert (raw.mask_id, raw.attention, raw.shifted) == (24, Attention("leader", 16), False)
    twice = save(again, tmp_path / "again")  # what others wrote into the object is kept
    assert json.loads((twice / "config.json").read_text())["unveil"] == config["unveil"]


def test_transformers_loads_a_grown_model(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    add_mask(model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(save(Shifted(model), tmp_path / "m"))
    assert type(theirs).__name__ == "LlamaForCausalLM"
    tokens = torch.randint(0, 24, (2, 9))
    with torch.no_grad():
        full = theirs(tokens, attention_mask=torch.zeros(2, 1, 9, 9)).logits
        torch.testing.assert_close(model(tokens), full, atol=1e-5, rtol=1e-5)


def test_shards(model, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "SHARD", 4000)
    folder = save(model, tmp_path / "m")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    assert equal(model, load_model(folder))
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(theirs.model.norm.weight, model.norm.weight)
    (folder / files[1]).unlink()
    with pytest.raises(ValueError, match=f"incomplete: {files[1]}"):
        load_model(folder)


def test_a_shape_without_config_is_described(tmp_path):
    shape = Shape(vocab=24, width=16, layers=1, heads=2, kv_heads=1, hidden=24, head_size=8, context=32, theta=5e4)
    model = Transformer(shape)
    again = load_model(save(model, tmp_path / "m"))
    assert isinstance(again, Transformer)
    assert again.s == shape
    assert equal(model, again)


def test_model_and_tokenizer(saved):
    model, text = load(saved)
    assert isinstance(text, Text)
    assert text.vocab == 24
    assert model.bos_id == 0
    config = json.loads((saved / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)


def test_mask_given_by_the_caller(saved):
    assert load_model(saved, mask_id=7).mask_id == 7
    with pytest.raises(ValueError, match="mask token 24 is outside of the vocabulary of 24"):
        load_model(saved, mask_id=24)


def test_built_in_models(model, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "BUILT_IN", tmp_path)
    save(model, tmp_path / "stdlib-dlm")
    assert equal(load_model("stdlib-dlm"), model)


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data/stories260K")
def test_a_real_parent(tmp_path):
    transformers = pytest.importorskip("transformers")
    model, text = load(STORIES)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    tokens = torch.randint(0, 512, (2, 40))
    with torch.no_grad():
        ours = model(tokens, Context(rule=causal))
        torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-4, rtol=1e-5)
    assert equal(model, load_model(save(model, tmp_path / "m", text)))


# What can be wrong when reading


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="not a checkpoint: it has no config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ValueError, match=r"not a checkpoint: it has no \*.safetensors"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="is a file: expected the folder"):
        load_model(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="one JSON object, not a list"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused_with_the_reason(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=f"only {name}: pickle files can run code.*convert the checkpoint to safetens"):
        load_model(tmp_path)


def test_adapters_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="LoRA adapter: merge it"):
        load_model(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_safetensors(size, saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_model(saved)


def test_corrupt_header(saved):
    file = saved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:40] = b"x" * 32
    file.write_bytes(data)
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_model(saved)


def test_missing_tensor(saved):
    rewrite(saved, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"lacks the tensor model.norm.weight of shape \(16,\)$"):
        load_model(saved)


def test_extra_tensor(saved):
    rewrite(saved, lambda tensors: tensors.update({"model.surprise": torch.zeros(2, 3)}))
    with pytest.raises(ValueError, match=r"the tensor model.surprise of shape \(2, 3\) is unknown to the family llama"):
        load_model(saved)


def test_one_layer_more_than_the_config(saved):
    reconfigure(saved, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"the tensor model.layers.1.* is unknown"):
        load_model(saved)


def test_mis_shaped_tensor(saved):
    reconfigure(saved, vocab_size=23)
    with pytest.raises(ValueError, match=r"embed_tokens.weight has the shape \(24, 16\), but .* asks for \(23, 16\)"):
        load_model(saved)


def test_integer_tensor(saved):
    rewrite(saved, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(16, dtype=torch.int8)}))
    with pytest.raises(ValueError, match="holds torch.int8: quantised"):
        load_model(saved)


def test_buffers_and_tied_heads_are_passed_over(saved, model):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    rewrite(saved, change)
    assert equal(load_model(saved), model)
    rewrite(saved, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match="lm_head.weight is not the embedding"):
        load_model(saved)


def test_unknown_dtype(saved):
    with pytest.raises(ValueError, match="unknown dtype 'int4'; there are: auto, float32, bfloat16"):
        load_model(saved, dtype="int4")


def test_tokenizer_missing(model, tmp_path):
    with pytest.raises(ValueError, match="tokenizer missing"):
        load(save(model, tmp_path / "m"))


def test_vocabulary_and_tokenizer_disagree(model, tmp_path):
    folder = save(model, tmp_path / "m")
    text_of(25).save(folder)
    with pytest.raises(ValueError, match="tokenizer disagree: the tokenizer has 25 tokens, the model 24 rows"):
        load(folder)
    with pytest.raises(ValueError, match="vocabulary and tokenizer disagree"):
        save(model, tmp_path / "n", text_of(25))


@pytest.mark.parametrize("name", ["./nowhere", "no/such/folder", "/no/where", "", "a b"])
def test_no_such_folder(name):
    with pytest.raises(ValueError, match="there is no folder"):
        load_model(name)


def test_hub_out_of_reach(monkeypatch):
    def fetch(name, allow_patterns):
        assert not any("bin" in pattern or "py" in pattern for pattern in allow_patterns)
        raise ConnectionError("unreachable")

    monkeypatch.setattr(folders, "snapshot_download", fetch)
    with pytest.raises(ValueError, match="no folder nobody/nothing, and as a hub id: the hub could not be reached"):
        load_model("nobody/nothing")


def test_hub_id(model, saved, monkeypatch):
    monkeypatch.setattr(folders, "snapshot_download", lambda name, allow_patterns: str(saved))
    assert equal(load_model("somebody/something"), model)


# What can be wrong when saving


def test_existing_folders_are_not_overwritten(model, saved, tmp_path):
    with pytest.raises(ValueError, match="exists and is not empty"):
        save(model, saved)
    other = fresh(LLAMA, seed=9)
    assert equal(load_model(save(other, saved, overwrite=True)), other)
    assert not (saved / "tokenizer.json").exists()
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="not a checkpoint: it will not be overwritten"):
        save(model, tmp_path / "home", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        save(model, tmp_path / "home" / "thesis.txt", overwrite=True)


@pytest.mark.parametrize("broken", ["save_file", "exchange"])
def test_a_full_disk_leaves_the_old_model(broken, model, saved, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, broken, full)
    with pytest.raises(OSError, match="could not be saved, and what was there before is untouched.*No space left"):
        save(fresh(LLAMA, seed=9), saved, overwrite=True)
    assert equal(load_model(saved), model)
    assert os.listdir(saved.parent) == ["model"]


def test_a_failed_rename_puts_the_old_model_back(model, saved, monkeypatch):
    real = os.replace

    def stubborn(source, target):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(folders.os, "replace", stubborn)
    with pytest.raises(OSError, match="untouched"):
        save(fresh(LLAMA, seed=9), saved, overwrite=True)
    assert equal(load_model(saved), model)
    assert os.listdir(saved.parent) == ["model"]


def test_a_shape_of_no_family_needs_a_config(tmp_path):
    shape = Shape(vocab=24, width=16, layers=1, heads=2, kv_heads=2, hidden=24, head_size=8, qk_norm="head")
    with pytest.raises(ValueError, match="only a plain Llama shape can be described"):
        save(Transformer(shape), tmp_path / "m")
