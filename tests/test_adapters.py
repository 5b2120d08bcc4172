"""LoRA: adapters that are trained beside frozen weights, merge exactly, travel in peft's layout, and fit one base."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from unveil import adapter as adapters
from unveil import hub, rules
from unveil.codecs.train import train_tokenizer
from unveil.context import Context
from unveil.families import llama
from unveil.nn.adapters import Lora
from unveil.nn.grow import add_mask, bare
from unveil.nn.transformer import Shape

SHAPE = Shape(vocab=60, width=32, layers=2, heads=4, kv_heads=2, hidden=64, head_size=8, context=64)
TOKENS = torch.arange(24).view(2, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama with a mask token, full attention and weights large enough to matter."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    model = hub.fresh(llama.describe(SHAPE), seed=1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(5)
    add_mask(model, used=59)
    model.attention = hub.FULL
    return hub.save(model, folder)


def grown(base, lora="r=4,alpha=8", seed=0):
    """The base with an adapter that has learnt something."""
    model = hub.load_model(base)
    adapters.begin(bare(model), Lora.parse(lora), str(base), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(base):
    pytest.importorskip("peft")
    model, plain = hub.load_model(base), hub.load_model(base)
    adapters.begin(bare(model), Lora(r=2, targets="q+down"), str(base))
    torch.testing.assert_close(model(TOKENS), plain(TOKENS), rtol=0, atol=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert all("lora_" in name and (".q." in name or ".down." in name) for name in trained)
    again = hub.load_model(base)
    torch.rand(7)  # the adapter's random numbers are its own
    adapters.begin(bare(again), Lora(r=2, targets="q+down"), str(base))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("lora", ["r=4,alpha=8", "r=3,alpha=2,targets=attention", "r=2,targets=mlp+out"])
def test_merged_is_what_was_trained(base, tmp_path, lora):
    pytest.importorskip("peft")
    model = grown(base, lora)
    saved = hub.save(model, tmp_path / "adapter", unveil={"recipe": "masked", "tokens_seen": 7})
    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    live, plain = model(TOKENS), hub.load_model(base)(TOKENS)
    assert (live - plain).abs().max() > 0.1
    for merged in (hub.load_model(base, adapter=saved), hub.load_model(saved)):
        torch.testing.assert_close(merged(TOKENS), live, rtol=0, atol=1e-5)
        assert bare(merged).config["unveil"]["tokens_seen"] == 7
    exported = hub.save(hub.load_model(saved), tmp_path / "merged")
    torch.testing.assert_close(hub.load_model(exported)(TOKENS), live, rtol=0, atol=1e-5)


def test_peft_itself_reads_and_writes_the_same_folders(base, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = grown(base)
    model.attention = bare(model).attention = hub.Attention("causal")
    saved = hub.save(model, tmp_path / "ours")
    theirs = transformers.LlamaForCausalLM.from_pretrained(base).eval()
    causal = hub.load_model(saved, raw=True)
    ctx = Context(rule=rules.causal)
    wrapped = peft.PeftModel.from_pretrained(theirs, saved)
    with torch.no_grad():
        torch.testing.assert_close(causal(TOKENS, ctx), wrapped(TOKENS).logits, rtol=0, atol=1e-4)
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p.mul_(1.5)
        wrapped.save_pretrained(tmp_path / "theirs")
        found = hub.load_model(base, adapter=tmp_path / "theirs", raw=True)
        torch.testing.assert_close(found(TOKENS, ctx), wrapped(TOKENS).logits, rtol=0, atol=1e-4)


def test_an_adapter_fits_its_own_base_alone(base, tmp_path):
    pytest.importorskip("peft")
    saved = hub.save(grown(base), tmp_path / "adapter")
    other = hub.load_model(base)
    with torch.no_grad():
        bare(other).blocks[0].attention.q.weight.mul_(1.01)
    other = hub.save(other, tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on another base .*base.* than .*other"):
        hub.load_model(other, adapter=saved)
    half = hub.save(hub.load_model(base, dtype="bfloat16"), tmp_path / "half")  # the same base, stored otherwise
    hub.load_model(half, adapter=saved)
    weights = saved / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file(tensors, weights)  # as another program would have written it: of no base that is known
    hub.load_model(other, adapter=saved)
    wide = Shape(**{**vars(SHAPE), "hidden": 96})
    large = hub.save(hub.fresh(llama.describe(wide)), tmp_path / "wide")
    with pytest.raises(ValueError, match=r"is of another base .*down_proj is 32 x 64, that of .*wide 32 x 96"):
        hub.load_model(large, adapter=saved)
    fewer = Shape(**{**vars(SHAPE), "layers": 1})
    small = hub.save(hub.fresh(llama.describe(fewer)), tmp_path / "small")
    with pytest.raises(ValueError, match=r"small has no layer model.layers.1"):
        hub.load_model(small, adapter=saved)


def test_what_is_no_plain_adapter_is_refused(base, tmp_path):
    pytest.importorskip("peft")
    saved = hub.save(grown(base, "r=1,targets=q"), tmp_path / "adapter")
    config = json.loads((saved / "adapter_config.json").read_text())

    def changed(**fields):
        (saved / "adapter_config.json").write_text(json.dumps({**config, **fields}))
        return hub.load_model(base, adapter=saved)

    with pytest.raises(ValueError, match="is a LOHA adapter: only plain LoRA"):
        changed(peft_type="LOHA")
    with pytest.raises(ValueError, match="an adapter with use_dora = True"):
        changed(use_dora=True)
    with pytest.raises(ValueError, match="an adapter with bias = 'all'"):
        changed(bias="all")
    changed()
    changed(base_model_name_or_path=None)
    with pytest.raises(ValueError, match="names no base"):
        hub.load_model(saved)
    changed(base_model_name_or_path="/gone/away")
    with pytest.raises(ValueError, match=r"the base of the adapter .* is not at hand: there is no folder"):
        hub.load_model(saved)
    with pytest.raises(ValueError, match="is an adapter itself"):
        hub.load_model(saved, adapter=saved)
    with pytest.raises(ValueError, match="is no adapter: it has no adapter_config.json"):
        hub.load_model(base, adapter=base)
    changed()
    weights = saved / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "more": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="something else than pairs of lora_A and lora_B"):
        hub.load_model(base, adapter=saved)
    weights.write_bytes(b"not at all")
    with pytest.raises(ValueError, match="is truncated or damaged"):
        hub.load_model(base, adapter=saved)
    weights.unlink()
    with pytest.raises(ValueError, match="is no adapter: it has no adapter_model.safetensors"):
        hub.load_model(saved)


def test_a_description_is_read_or_refused(base):
    assert Lora.parse("r=2, alpha=3, targets=q+mlp, dropout=0.1") == Lora(2, 3, "q+mlp", 0.1)
    for text, message in {
        "rank=2": "an adapter is written r=8",
        "r": "an adapter is written r=8",
        "r=two": "an adapter's r is a number",
        "r=0": "a rank of at least 1",
        "dropout=1": "a dropout from 0 up to 1",
        "targets=q+head": "no adapter target called 'head'; there are: all, attention, mlp, q, k",
    }.items():
        with pytest.raises(ValueError, match=message):
            Lora.parse(text)


def test_what_cannot_carry_an_adapter_is_refused(base, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    gpt2 = {"model_type": "gpt2", "vocab_size": 60, "n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 64}
    folder = hub.save(hub.fresh(gpt2), tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"the family gpt2 join k, q, v in one tensor"):
        adapters.begin(bare(hub.load_model(folder)), Lora(), str(folder))
    with pytest.raises(ValueError, match="has none of the layers gate"):
        adapters.begin(bare(hub.load_model(folder)), Lora(targets="gate"), str(folder))
    model = grown(folder, "r=2,targets=out+up+down")
    saved = hub.save(model, tmp_path / "adapter")
    assert json.loads((saved / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    torch.testing.assert_close(hub.load_model(saved)(TOKENS), model(TOKENS), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="is an adapter already"):
        adapters.begin(bare(hub.load_model(saved)), Lora(), str(saved))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"needs peft: pip install 'unveil\[tune\]'"):
        adapters.begin(bare(hub.load_model(base)), Lora(), str(base))
    hub.load_model(saved)  # needs none


def test_an_adapter_keeps_its_tokenizer_and_replaces_only_adapters(base, tmp_path):
    pytest.importorskip("peft")
    text = train_tokenizer(["some words to learn"], 257)
    model = hub.fresh(llama.describe(Shape(**{**vars(SHAPE), "vocab": 260})))
    base = hub.save(model, tmp_path / "words", text)
    model = grown(base, "r=1,targets=v")
    saved = hub.save(model, tmp_path / "adapter", text)
    assert hub.load(saved)[1].encode("some") == text.encode("some")
    assert (saved / "tokenizer.json").is_file()
    with pytest.raises(ValueError, match="exists and is not empty"):
        hub.save(model, saved, text)
    hub.save(model, saved, text, overwrite=True)
