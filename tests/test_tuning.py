"""`unveil sft` as a user types it: instructions, adapters, preferences, what is measured meanwhile, and mistakes."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from commands import command
from rich.console import Console

from unveil import hub
from unveil.attention import Attention
from unveil.evaluate.answers import Exam
from unveil.nn.grow import bare
from unveil.start import fitting, start
from unveil.tasks.arithmetic import Arithmetic
from unveil.train import Recipe, train

SMALL = ["--steps", "2", "--rows", "2", "--length", "40", "--set", "ema=0", "--set", "held_out=0.2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Rows, pairs, and small models of each attention."""
    folder = tmp_path_factory.mktemp("tuning")
    rows = [{"prompt": f"add {i} and {i}", "response": f" = {i + i}"} for i in range(24)]
    pairs = [{"prompt": r["prompt"], "chosen": r["response"], "rejected": r["response"] + "1"} for r in rows]
    for name, found in {"rows": rows, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    small = Recipe(
        **{"vocab": 260, "width": 32, "layers": 1, "heads": 2, "rows": 2, "length": 40, "steps": 1, "chat": True},
        data=(str(folder / "rows.jsonl"),),
    )
    goals = {"full": "masked", "leader": "leader(n=3)", "block": "block(size=4)", "ar": "autoregressive"}
    for seed, (name, goal) in enumerate(goals.items()):
        made = start(replace(small, objective=goal, seed=seed))
        hub.save(made.model, folder / name, made.text)
    return folder


@pytest.fixture
def run(monkeypatch, capsys, place):
    monkeypatch.chdir(place)

    return partial(command, monkeypatch, capsys)


def last(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


OBJECTIVES = {"full": "masked", "leader": "leader(n=3, grow=0)", "block": "block(size=4)", "ar": "autoregressive"}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_objective_fits_the_checkpoint(run, place, tmp_path, kind):
    out = tmp_path / "out"
    words = ["sft", kind, "--data", "rows.jsonl", *SMALL, "--problems", "3"]
    code, said, errors = run(*words, "--out", str(out), "--json")
    assert code == 0, errors
    before, after = hub.load_model(place / kind), hub.load_model(out)
    assert after.attention == before.attention
    assert (after.shifted, after.mask_id) == (before.shifted, before.mask_id)
    assert bare(after).config["unveil"]["recipe"] == OBJECTIVES[kind]
    found = last(said)
    assert found["held_out"] > 0
    assert ("exact_match" in found) is (kind != "ar")
    assert fitting(before.attention) == OBJECTIVES[kind]


def test_an_adapter_is_trained_continued_used_and_merged(run, place, tmp_path):
    pytest.importorskip("peft")
    out, merged = tmp_path / "adapter", tmp_path / "merged"
    words = ["sft", "leader", "--data", "rows.jsonl", *SMALL, "--lora", "r=2,alpha=4", "--problems", "0"]
    code, _, errors = run(*words, "--set", "lr=0.01", "--out", str(out))
    assert code == 0, errors
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "config.json").exists()
    code, _, errors = run(*words, "--set", "lr=0.01", "--out", str(out), "--resume")
    assert code == 0, errors
    code, said, errors = run("generate", str(out), "add 1", "--length", "4", "--json")
    assert code == 0, errors
    code, said, errors = run("info", str(out), "--json")
    assert code == 0, errors
    assert last(said)["adapter"]["layers"] == 7
    code, said, errors = run("score", str(out), "--length", "40", "--json")
    assert code == 0, errors
    assert last(said)["held_out"] is True
    code, said, errors = run("export", str(place / "leader"), str(merged), "--adapter", str(out), "--json")
    assert code == 0, errors
    tokens = torch.arange(12)[None]
    used, plain = hub.load_model(out)(tokens), hub.load_model(place / "leader")(tokens)
    torch.testing.assert_close(hub.load_model(merged)(tokens), used, rtol=0, atol=1e-5)
    assert not torch.equal(used, plain)
    code, _, errors = run("export", str(place / "block"), str(tmp_path / "no"), "--adapter", str(out))
    assert code == 2
    assert "was trained on another base" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_preferences_measure_their_margin(run, tmp_path):
    words = ["sft", "full", "--recipe", "preference", "--data", "pairs.jsonl", *SMALL, "--set", "eval_every=1"]
    code, said, errors = run(*words, "--out", str(tmp_path / "out"), "--json")
    assert code == 0, errors
    found = last(said)
    assert {"held_out", "held_out_margin", "held_out_right"} <= found.keys()
    assert "exact_match" not in found
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["held_out_margin"] == pytest.approx(0, abs=1e-4)
    assert {"margin", "right", "chosen", "rejected"} <= lines[1]["parts"].keys()


WRONG = {
    ("--data", "nowhere.jsonl"): "no such file or folder: nowhere.jsonl",
    (): "sft needs rows of messages, or of prompt and response",
    ("--data", "rows.jsonl", "--lora", "rank=3"): "an adapter is written r=8,alpha=16",
    ("--data", "rows.jsonl", "--lora", "r=3", "--objective", "leader(n=3)"): "changes neither attention, shift nor",
    ("--data", "rows.jsonl", "--objective", "leader(m=3)"): "leader has no option 'm'",
    ("--data", "rows.jsonl", "--task", "poetry"): "no task called 'poetry'",
    ("--data", "rows.jsonl", "--problems", "-1"): "problems is a number to decode",
    ("--data", "rows.jsonl", "--recipe", "preference"): "should have prompt, chosen and rejected as texts",
    ("--data", "rows.jsonl", "--length", "8"): "no conversation fits 8 tokens",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_one_sentence(run, tmp_path, words):
    if "--lora" in words:
        pytest.importorskip("peft")
    code, _, errors = run("sft", "full", *SMALL, "--out", str(tmp_path / "out"), *words)
    assert code == 2
    assert WRONG[words] in errors
    assert not (tmp_path / "out").exists()


def test_auto_needs_a_parent(place):
    with pytest.raises(ValueError, match="the recipe names no parent"):
        start(Recipe(objective="auto", steps=1, data=(str(place / "rows.jsonl"),), chat=True))
    with pytest.raises(ValueError, match="compares with the model that it starts from"):
        start(Recipe(objective="preference", steps=1, data=(str(place / "pairs.jsonl"),)))
    assert fitting(Attention("leader")) == "leader(grow=0)"


def test_right_answers_are_counted(place):
    model, text = hub.load(place / "full")
    rows = start(Recipe(parent=str(place / "full"), data=(str(place / "rows.jsonl"),), chat=True, objective="auto"))
    exam = Exam.of_rows(model, text, rows.corpus.train, 40, 5)
    assert len(exam.problems) == 5
    for problem in exam.problems:
        assert text.decode(problem.row[: problem.first]).startswith("add")
        assert exam.task.score(problem.example, f"{problem.example.answer}\n") == 1
        assert exam.task.score(problem.example, problem.example.answer + "0") == 0
        assert problem.blanks > len(text.encode(problem.example.answer))
    found = exam.sit(model)
    assert found.mean in (0, 0.2, 0.4)
    assert found.high > 0.3
    assert len(Exam.of_task(model, text, Arithmetic(length=12), 4).problems) == 4


def test_a_file_of_prompts_is_answered_and_taken_up_again(run, place, tmp_path):
    words = ["map", "full", "--in", "rows.jsonl", "--out", str(tmp_path / "out"), "--length", "4", "--shard", "10"]
    code, said, errors = run(*words, "--local", "--json")
    assert code == 0, errors
    counted = {"answered": 24, "failed": 0, "rows": 24, "shards": 3, "errors": 0}
    assert last(said) == {"out": str(tmp_path / "out"), **counted}
    (tmp_path / "out" / "part-000001.jsonl").unlink()
    code, said, errors = run(*words, "--local", "--json")
    assert code == 0, errors
    assert (last(said)["answered"], last(said)["rows"]) == (10, 24)
    code, _, errors = run(*words, "--local", "--seed", "1")
    assert (code, errors.count("\n")) == (2, 1)
    assert "holds the shards of another job; it differs in seed (0 there, 1 here)" in errors


@pytest.mark.parametrize("goal", ["block(size=16)", "leader(n=15, grow=0)"])
def test_an_answer_shorter_than_the_block_is_written_and_ended(place, tmp_path, goal):
    rows = [{"prompt": f"add {i} and {i}", "response": " ok"} for i in range(24)]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"vocab": 260, "width": 32, "layers": 2, "heads": 2}
    limits = {"steps": 150, "rows": 8, "length": 40, "lr": 1e-2, "ema": 0.0, "save_every": 0, "dtype": "float32"}
    made = start(Recipe(**sizes, **limits, data=(str(tmp_path / "short.jsonl"),), chat=True, objective=goal))
    train(made.model, made.objective, made.corpus.train, made.recipe, out=tmp_path / "out", console=Console(quiet=True))
    exam = Exam.of_rows(made.model, made.text, made.corpus.held_out, 40, 3)
    assert exam.sit(made.model).mean == 1
