"""A recipe becomes a network that its objective can train, from random weights or from a parent."""

import json
from dataclasses import replace

import pytest
import torch

from unveil import hub
from unveil.attention import Attention
from unveil.codecs.train import train_tokenizer
from unveil.start import start
from unveil.train import Recipe

SMALL = {"vocab": 300, "width": 32, "layers": 2, "heads": 2, "rows": 2, "length": 32, "steps": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A text and a parent that was made from it."""
    folder = tmp_path_factory.mktemp("start")
    lines = "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(300))
    (folder / "text.txt").write_text(lines, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNVEIL_CACHE", str(folder / "cache"))
        made = start(Recipe(data=str(folder / "text.txt"), **SMALL))
        hub.save(made.model, folder / "parent", made.text)
        yield folder


KINDS = {
    "autoregressive": (Attention("causal"), False),
    "adapt": (Attention("full"), True),
    "leader(n=3)": (Attention("leader", 4), True),
    "block(size=8)": (Attention("block", 8), False),
}


@pytest.mark.parametrize("parent", [True, False])
@pytest.mark.parametrize("objective", [*KINDS, "masked"])
def test_the_network_suits_its_objective(place, objective, parent):
    data, made_from = str(place / "text.txt"), str(place / "parent") if parent else ""
    made = start(Recipe(data=data, parent=made_from, objective=objective, **SMALL))
    attention, shifted = KINDS.get(objective, (Attention("full"), parent))  # LLaDA from scratch knows no shift
    assert made.model.attention == attention
    assert made.model.shifted is shifted
    assert made.model.bos_id == made.text.start_id
    if objective == "autoregressive":
        assert made.model.mask_id == -1
    else:
        assert made.model.mask_id == made.text.mask_id == made.text.vocab - 1
    loss = made.objective(made.model, made.corpus.train.batch(0, 2, 32))
    loss.total.backward()
    assert torch.isfinite(loss.mean)
    assert made.corpus.held_out.tokens > 0


def test_a_new_tokenizer_reads_nothing_that_is_held_out(tmp_path, monkeypatch):
    """What is held out is known without a tokenizer, and found again with the one that was trained."""
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    seen: list[str] = []

    def train(texts, vocab):
        seen[:] = texts
        return train_tokenizer(seen, vocab)

    monkeypatch.setattr("unveil.start.train_tokenizer", train)
    documents = [f"{chr(97 + i % 26)}{i} " * (5 + i % 40) for i in range(200)]
    (tmp_path / "d.json").write_text(json.dumps(documents), encoding="utf-8")
    source = str(tmp_path / "d.json")
    made = start(Recipe(data=source, held_out=0.2, **SMALL))
    away = {made.text.decode(made.corpus.held_out.document(i).tolist()) for i in range(len(made.corpus.held_out))}
    assert len(away) + len(seen) == len(documents)
    assert not away & set(seen)
    hub.save(made.model, tmp_path / "parent", made.text)
    again = start(Recipe(data=source, held_out=0.2, parent=str(tmp_path / "parent"), objective="masked", **SMALL))
    assert again.corpus.held_out.tokens == made.corpus.held_out.tokens
    hub.save(again.model, tmp_path / "child", again.text)
    assert hub.load_model(tmp_path / "child", raw=True).config["unveil"]["split"] == "characters"

    rows = [json.dumps({"prompt": f"add {i} ", "response": "x" * (i % 30 + 1)}) for i in range(90)]
    (tmp_path / "chat.jsonl").write_text("\n".join(rows), encoding="utf-8")
    made = start(Recipe(data=str(tmp_path / "chat.jsonl"), chat=True, held_out=0.2, **SMALL))
    away = {made.text.decode(prompt) for _, prompt, _ in made.corpus.held_out.conversations}
    assert len(away) + len(seen) / 2 == 90
    assert not away & set(seen)


def test_a_parent_keeps_its_weights(place):
    parent = hub.load_model(place / "parent")
    made = start(Recipe(data=str(place / "text.txt"), parent=str(place / "parent"), objective="leader", **SMALL))
    ours = dict(made.model.named_parameters())
    for name, value in parent.named_parameters():
        assert torch.equal(ours[f"model.{name}"][: len(value)], value)


def test_the_shift_can_be_chosen(place):
    recipe = Recipe(data=str(place / "text.txt"), parent=str(place / "parent"), objective="masked", **SMALL)
    assert not start(replace(recipe, shift="no")).model.shifted
    assert start(replace(recipe, shift="yes")).model.shifted
    with pytest.raises(ValueError, match="shift is auto, yes or no"):
        replace(recipe, shift="maybe")
    with pytest.raises(ValueError, match="leader layout .* needs the shift"):
        start(replace(recipe, objective="leader(n=3)", shift="no"))


def test_an_adapted_model_can_be_adapted_again(place, tmp_path):
    recipe = Recipe(data=str(place / "text.txt"), parent=str(place / "parent"), objective="leader(n=3)", **SMALL)
    made = start(recipe)
    hub.save(made.model, tmp_path / "dlm", made.text)
    again = start(Recipe(data=recipe.data, parent=str(tmp_path / "dlm"), objective="leader(n=7)", **SMALL))
    assert again.model.attention == Attention("leader", 8)
    assert again.model.mask_id == made.model.mask_id
    assert again.text.vocab == made.text.vocab


def test_lessons_of_the_parent_come_from_the_parent(place):
    data, parent = str(place / "text.txt"), str(place / "parent")
    made = start(Recipe(data=data, parent=parent, objective="leader(n=3, kl=0.5)", **SMALL))
    batch = made.corpus.train.batch(0, 2, 32)
    batch.progress = 0.0
    assert "kl" in made.objective(made.model, batch).parts
    with pytest.raises(ValueError, match="names none"):
        start(Recipe(data=data, objective="leader(kl=0.5)", **SMALL))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "nonsense"}, "there are: llama"),
        ({"heads": 5}, "no multiple of 5 heads"),
        ({"heads": 4, "kv_heads": 3}, "3 key-value heads"),
        ({"data": "missing.txt"}, "no such file"),
        ({"objective": "nonsense"}, "there are: "),
        ({"vocab": 10}, "too small"),
    ],
)
def test_what_does_not_go_together_is_refused(place, change, said):
    given = {"data": str(place / "text.txt"), **SMALL, **change}
    with pytest.raises(ValueError, match=said):
        start(Recipe(**given))


def test_rows_longer_than_the_context_are_refused(place):
    given = {"data": str(place / "text.txt"), "parent": str(place / "parent"), **SMALL, "length": 4096}
    with pytest.raises(ValueError, match="longer than the model's context"):
        start(Recipe(**given))


def test_conversations_are_rows_whose_prompts_stay(place):
    rows = [f'{{"prompt": "add {i} and 1: ", "response": "{i + 1}"}}' for i in range(40)]
    (place / "chat.jsonl").write_text("\n".join(rows), encoding="utf-8")
    data, parent = str(place / "chat.jsonl"), str(place / "parent")
    made = start(Recipe(data=data, parent=parent, objective="masked", chat=True, **SMALL))
    batch = made.corpus.train.batch(0, 4, 32)
    for tokens, answer in zip(batch.tokens, batch.answer, strict=True):
        prompt = made.text.decode(tokens[: int(answer.int().argmax())].tolist())
        assert prompt.startswith("add ")
        assert tokens[-1] == made.text.eos_id
        assert bool(answer[-1])
    assert torch.isfinite(made.objective(made.model, batch).mean)


@pytest.mark.parametrize("objective", ["autoregressive", "masked", "adapt", "leader(n=3)"])
def test_conversations_can_be_read_as_bytes(tmp_path, objective):
    rows = [f'{{"prompt": "add {i}\\n", "response": "{i + 1}"}}' for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    made = start(
        Recipe(data=str(tmp_path / "rows.jsonl"), objective=objective, chat=True, **{**SMALL, "vocab": 257, "heads": 4})
    )
    assert made.text.vocab == 257 + (objective != "autoregressive")
    assert len(made.text.encode("add 7\nß")) == 8  # bytes
    batch = made.corpus.train.batch(0, 4, 16)
    assert not batch.answer[:, :6].any()
    assert batch.answer[:, 10:].all()
    found = made.objective(made.model, batch)
    found.total.backward()
    assert int(found.count) == int(batch.answer.sum())
    assert torch.isfinite(found.mean)
    rows = ['{"messages": [{"role": "assistant", "content": "hi"}]}'] * 2
    (tmp_path / "talk.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ValueError, match="no chat template"):
        start(Recipe(data=str(tmp_path / "talk.jsonl"), objective=objective, chat=True, **SMALL))
