"""An autoregressive parent writes as it would anywhere else: token by token, and exactly as transformers does."""

from __future__ import annotations

import json

import pytest
import torch
from commands import command

from unveil import hub
from unveil.canvas import Canvas
from unveil.nn.following import Following
from unveil.sample import denoise, fill, generate, writer

PROMPTS = [[1, 5, 9], [1, 7], [1, 3, 4, 6, 2, 8]]


@pytest.fixture(params=["llama", "gpt2"])
def pair(request, tmp_path, monkeypatch):
    """A model of transformers with tokens that matter to each other, and the same one here."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if request.param == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, max_position_embeddings=64, **sizes)
        theirs = transformers.LlamaForCausalLM(config).eval()
    else:
        config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.dim() > 1:
                p.mul_(8)
    theirs.save_pretrained(tmp_path / "parent")
    return theirs, hub.load_model(tmp_path / "parent")


def likeliest(theirs, prompt: list[int], length: int) -> list[int]:
    """A plain loop: the likeliest next token, everything computed anew each time."""
    row = list(prompt)
    with torch.inference_mode():
        for _ in range(length):
            row.append(int(theirs(torch.tensor([row])).logits[0, -1].argmax()))
    return row


@pytest.mark.parametrize("cache", ["causal", "recompute"])
def test_greedy_decoding_is_that_of_transformers(pair, cache):
    theirs, model = pair
    right = [likeliest(theirs, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(row[-20:]) for row in right}) == 3
    assert len(set(sum(right, []))) > 10, "the network repeats itself, and shows nothing"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = generate(model, [torch.tensor(prompt) for prompt in PROMPTS], 20, "threshold", cache=cache)
    assert [row[: len(line)].tolist() for row, line in zip(found, right, strict=True)] == right
    assert model.mask_id == -1
    assert all(value.equal(model.state_dict()[name]) for name, value in before.items())


def test_every_token_can_be_said_and_one_pass_says_one(pair):
    """The last token of the vocabulary is no mask."""
    _, model = pair
    follower = writer(model)
    assert isinstance(follower, Following)
    assert writer(follower) is follower
    assert follower.mask_id == 40
    canvas = Canvas.answering([torch.tensor([1, 2])], 12, follower.mask_id, torch.zeros(1, dtype=torch.long))
    for _ in denoise(follower, canvas, "confidence", cache="causal", block=1):
        pass
    assert canvas.forwards == 12
    again = generate(model, torch.tensor([[1, 2]]), 50, "confidence(temperature=30)", cache="causal", seed=3)
    assert 39 in again[0]
    assert int(again.max()) < 40


def test_what_an_autoregressive_model_cannot_do_is_refused(pair):
    _, model = pair
    row = torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match="adapt it first"):
        fill(model, [torch.tensor([1, -1, 3])])
    follower = writer(model)
    with pytest.raises(ValueError, match="fills no blanks: adapt it first"):
        fill(follower, [torch.tensor([1, 40, 3])])
    with pytest.raises(ValueError, match="in blocks of 1, token by token"):
        generate(model, [row], 8, cache="causal", block=4)
    with pytest.raises(ValueError, match="use causal"):
        generate(model, [row], 8, cache="dual")
    model.mask_id = 39  # trained on from an adapted model: it has a mask and cannot be asked as a denoiser
    with pytest.raises(ValueError, match=r"sample\.writer"):
        fill(model, [torch.tensor([1, 39])])


def test_the_embedded_parent_from_the_command_line(monkeypatch, capsys, tmp_path):
    words = ["generate", "import os", "-m", "stdlib-ar", "--length", "12"]
    code, out, err = command(monkeypatch, capsys, *words, "--json")
    assert code == 0, err
    assert "stdlib-ar is autoregressive and writes token by token" in err
    found = json.loads(out.splitlines()[-1])
    assert (found["forwards"], found["tokens"], found["cache"], found["block"]) == (12, 12, "causal", 1)
    model, text = hub.load("stdlib-ar")
    row = [text.start_id, *text.encode("import os")]
    for _ in range(12):
        with torch.inference_mode():
            row.append(int(writer(model).model(torch.tensor([row]), causally())[0, -1].argmax()))
    assert found["samples"][0]["text"].startswith("import os")
    written = text.decode(row[: row.index(text.eos_id, 1)] if text.eos_id in row[1:] else row)
    assert found["samples"][0]["text"] == written
    code, out, err = command(monkeypatch, capsys, *words, "--trace", str(tmp_path / "run.jsonl"))
    assert (code, out.strip()) == (0, written.strip())
    code, out, _ = command(monkeypatch, capsys, "watch", str(tmp_path / "run.jsonl"), "--json")
    assert json.loads(out.splitlines()[-1])["forwards"] == 12
    code, _, err = command(monkeypatch, capsys, "fill", "a[[3]]b", "-m", "stdlib-ar")
    assert (code, err.count("\n")) == (2, 1)
    assert "it cannot fill blanks: adapt it first" in err
    code, _, err = command(monkeypatch, capsys, *words, "--block", "4")
    assert (code, "token by token" in err.splitlines()[-1]) == (2, True)


def causally():
    from unveil.context import Context
    from unveil.rules import causal

    return Context(rule=causal)
