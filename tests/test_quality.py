"""Generated text and its judges, and the two commands: against plain sums, by hand, and whole."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny
from toy import network, spaced

pytest.importorskip("sklearn", reason="needs the extra eval")

from unveil import cli, hub
from unveil.context import Context
from unveil.evaluate.kinship import kinship
from unveil.evaluate.matched import at_entropy
from unveil.evaluate.problems import Setting
from unveil.evaluate.quality import Judge, Passages, passages, ways
from unveil.evaluate.samples import appraise, entropy, inside, per_block, write
from unveil.evaluate.texts.embedders import fitted
from unveil.evaluate.texts.scorer import surprise, surprise_of
from unveil.rules import causal
from unveil.sample import writer
from unveil.start import start
from unveil.train import Recipe

AR = Context(rule=causal)
STORY = "Once upon a time there was a {} {} who lived in a {} house and liked to sing to the {} moon. "
WORDS = ["small", "red", "old", "kind", "tall", "cat", "boy", "king", "girl", "bird", "round", "blue"]
SHAPE = {"vocab": 300, "width": 16, "layers": 1, "heads": 2, "steps": 1, "length": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Stories, an autoregressive model of them, another, and a masked one; none of them has learnt anything."""
    found = tmp_path_factory.mktemp("quality")
    numbers = np.random.default_rng(0)
    texts = ["".join(STORY.format(*numbers.choice(WORDS, 4)) for _ in range(3)) for _ in range(40)]
    (found / "stories.txt").write_text("<|endoftext|>".join(texts))
    (found / "rows.jsonl").write_text("".join(json.dumps({"completion": text}) + "\n" for text in texts[::-1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNVEIL_CACHE", str(found / "cache"))
        for name, more in {"ar": {}, "other": {"seed": 1}, "dlm": {"objective": "masked", "shift": "no"}}.items():
            made = start(Recipe(data=str(found / "stories.txt"), **SHAPE, **more))
            hub.save(made.model, found / name, made.text)
    return found


@pytest.fixture
def run(monkeypatch, capsys, place):
    """A command in this process: its exit code, what it printed, and what it complained of."""
    monkeypatch.setenv("UNVEIL_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["unveil", *words])
        with pytest.raises(SystemExit) as found:
            cli.main()
        return int(found.value.code or 0), *capsys.readouterr()

    return command


# What is written


def test_model_calls_are_shared_among_blocks():
    assert per_block(network("full"), 1, 127, 32) == 32
    assert per_block(network("full"), 1, 20, 32) == 20
    assert per_block(network("full"), 1, 128, 32, block=32) == 8
    assert per_block(network("leader", 5), 1, 30, 18) == 18 // 6 - 1
    assert per_block(network("block", 4), 1, 11, 6) == 2  # positions 1 to 11 lie in three blocks
    assert per_block(network("block", 4), 0, 11, 6) == 2
    assert per_block(network("leader", 5), 1, 30, 6) == 0


def test_a_text_does_not_depend_on_what_it_is_written_with():
    prompts = torch.randint(0, 14, (5, 3), generator=torch.Generator().manual_seed(0))
    setting = Setting("first_hitting", block=4)
    whole, calls = write(tiny(), prompts, 8, setting, seed=7)
    parts, _ = write(tiny(), prompts, 8, setting, seed=7, rows=2)
    assert torch.equal(whole, parts)
    assert torch.equal(whole[:, :3], prompts)
    assert calls == 8
    again, _ = write(tiny(), prompts, 8, setting, seed=8)
    assert not torch.equal(whole, again)
    with pytest.raises(ValueError, match="steps are 1; expected"):
        ways(network("leader", 3), Passages(prompts, 1), "random", Setting("random"), [1], [1.0])


def test_texts_end_at_their_end_and_at_a_new_beginning():
    rows = torch.tensor([[0, 5, 6, 9, 7], [0, 5, 0, 6, 7], [9, 5, 6, 7, 8]])
    assert inside(rows, eos=9, begin=0).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]


def test_appraisal_is_a_sum_of_surprises_beside_an_entropy():
    model = network("causal")
    rows = torch.randint(0, 14, (3, 7), generator=torch.Generator().manual_seed(0))
    found = appraise(model, rows, None)
    logp = model(rows, AR).detach().log_softmax(-1)
    nats = -logp[:, :-1].gather(-1, rows[:, 1:, None]).mean()
    assert found["nats"] == pytest.approx(float(nats), rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(float(nats)), rel=1e-3)
    assert found["length"] == 7
    assert entropy(torch.tensor([1, 1, 2, 3])) == pytest.approx(1.5 * math.log(2))
    assert found["entropy"] == pytest.approx(np.mean([entropy(row[1:]) for row in rows]))
    lone = appraise(model, torch.tensor([[3, 14, 2]]), eos=14)
    assert (lone["nats"], lone["entropy"], lone["length"]) == (0, 0, 1)


def test_figures_at_an_entropy_are_read_between_temperatures():
    line = [(4.0, 2.0), (3.0, 1.0), (5.0, 6.0)]
    assert at_entropy(line, 3.5) == 1.5
    assert at_entropy(line, 4.5) == 4.0
    assert at_entropy(line, 5.05) == 6.0
    assert at_entropy(line, 5.2) is None
    assert at_entropy([], 1.0) is None


# Who judges


def test_kinship():
    one = network("causal")
    assert kinship(one, one).correlation == pytest.approx(1)
    assert "NOT independent" in kinship(one, one).sentence
    grown = network("causal")
    with torch.no_grad():
        for p in grown.parameters():
            p.add_(torch.randn_like(p) * p.std())
    assert not kinship(one, grown).independent
    assert abs(kinship(one, network("causal", seed=5)).correlation) < 0.1


def test_surprise_pads_and_sorts_without_changing_a_number():
    model = network("causal")
    rows = [[1, 2, 3, 4, 5, 6], [3, 3], [2], [5, 4, 3, 2]]
    found = surprise_of(model, rows)
    assert found.counts.tolist() == [5, 1, 0, 3]
    for i in (0, 1, 3):
        logp = model(torch.tensor([rows[i]]), AR).detach().log_softmax(-1)[0]
        alone = -sum(float(logp[at, token]) for at, token in enumerate(rows[i][1:]))
        assert found.sums[i] == pytest.approx(alone, rel=1e-4)
    with pytest.raises(ValueError, match="the scorer has full attention"):
        surprise_of(network("full"), rows)


def test_a_judge_counts_what_follows_the_prompt(place):
    (model, text), other = hub.load(place / "ar"), hub.load_model(place / "other")
    documents = [np.array([text.start_id, *text.encode(story)]) for story in ["the red cat sang to the old moon"] * 30]
    real = passages(documents, 3, 5, 12)
    judge = Judge(text, model, text, [], real)
    found = judge.nats(real)
    assert judge.same
    assert found.counts.tolist() == [5.0] * 12
    logp = model(real.rows, AR).detach().log_softmax(-1)
    nats = -logp[:, 2:-1].gather(-1, real.rows[:, 3:, None])[..., 0].sum(1)
    assert found.sums == pytest.approx(nats.numpy(), rel=1e-3)
    spelled = Judge(text, other, text, [], real)
    spelled.same = False  # as with a scorer of another tokenizer: by way of the text
    by_rows, by_text = Judge(text, other, text, [], real).nats(real), spelled.nats(real)
    start = [text.start_id, *text.encode("x")][:1]
    assert by_text.counts.sum() > 0
    assert surprise(other, text, ["the"]).counts[0] == len(start) + len(text.encode("the")) - 1
    assert by_text.sums.mean() == pytest.approx(by_rows.sums.mean(), rel=0.3)


def test_what_follows_a_prompt_keeps_its_first_space():
    text = spaced()
    rows = torch.tensor([text.encode("a b a b b a")[:6]] * 10)
    judge = Judge(text, network("causal"), text, [], Passages(rows, 2))
    before = [text.decode(row) for row in judge.real.prompts]
    assert before[0] == "a b"
    assert judge.told(judge.real) == [" a b b a"] * 10
    assert judge.told(Passages(torch.tensor([[0, *text.encode("a b")]] * 10), 1)) == ["a b"] * 10


def test_passages(place):
    documents = [np.arange(20), np.arange(100, 107), np.arange(5)]
    with pytest.raises(ValueError, match="has 2 documents of 6 tokens"):
        passages(documents, 0, 5, 10)
    found = passages([np.arange(i, i + 12) for i in range(10)], 2, 4, 10)
    assert found.rows.shape == (10, 6)
    assert found.rows[:, 0].tolist() == [(i // 2) + 6 * (i % 2) for i in range(0, 20, 2)]
    assert passages([np.arange(i, i + 12) for i in range(10)], 0, 4, 10).rows[:, 0].tolist() == list(range(10))
    with pytest.raises(ValueError, match="expected 10 texts or more"):
        passages(documents, 0, 5, 3)


def test_figures_of_a_judge_name_what_they_are(place):
    model, text = hub.load(place / "ar")
    stories = (place / "stories.txt").read_text().split("<|endoftext|>")
    documents = [np.array([text.start_id, *text.encode(story)]) for story in stories]
    judge = Judge(text, model, text, fitted(stories), passages(documents, 0, 24, 20), draws=20)
    copy = judge.figures(Passages(judge.real.rows.clone(), judge.real.first))
    assert copy["mauve_style/tfidf"].value == pytest.approx(1, abs=1e-3)
    real = judge.figures(judge.real)
    assert real["entropy"].value == copy["entropy"].value > 2
    assert "mauve_style/tfidf" not in real
    alone = ways(writer(model), judge.real, "confidence", Setting("confidence", "causal", None, 1), [8], [0.5, 1.0])
    assert [(steps, heat) for steps, heat, _ in alone] == [(None, 0.5), (None, 1.0)]


# The commands


QUALITY = ["--scorer", "other", "--data", "stories.txt", "--all", "--steps", "4,8", "--temperatures", "0.5,1"]
QUALITY += ["--count", "12", "--length", "12"]


def test_quality_command(run, place, monkeypatch):
    code, out, err = run("quality", "dlm", *QUALITY, "--out", "quality", "--json")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["independent"] is True
    assert [(point["steps"], point["temperature"]) for point in found["points"]] == [(4, 0.5), (4, 1), (8, 0.5), (8, 1)]
    for point in found["points"]:
        assert {"nats", "entropy", "distinct_2", "mauve_style/ppmi"} <= point["figures"].keys()
        assert point["forwards"] <= point["steps"]
    assert "entropy" in found["real"]
    assert len(found["at_the_entropy_of_real_text"]) == 2
    files = {path.name for path in (place / "quality").iterdir()}
    assert files == {"quality.json", "quality.html", "quality.png", "texts.jsonl"}
    page = (place / "quality" / "quality.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "<script" not in page
    code, _, err = run("quality", "dlm", *QUALITY, "--out", "quality")
    assert (code, "--overwrite" in err) == (2, True)
    code, out, err = run("quality", "ar", "--scorer", "ar", *QUALITY[2:], "--prompt", "4")
    assert code == 0, err
    assert "NOT independent" in out
    assert "entropy" in out.splitlines()[0]


def test_what_is_written_is_kept(run, place, monkeypatch):
    from unveil.evaluate import quality

    plain = json.loads(run("quality", "dlm", *QUALITY, "--json")[1].splitlines()[-1])
    real, calls = quality.written, []

    def stops(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(quality, "written", stops)
    run("quality", "dlm", *QUALITY, "--out", "kept")
    assert [path.name for path in (place / "kept").iterdir()] == ["unfinished.json"]
    code, out, err = run("quality", "dlm", *QUALITY, "--out", "kept", "--json")
    assert code == 0, err
    assert len(calls) == 5
    assert json.loads(out.splitlines()[-1])["points"] == plain["points"]


def test_texts_command(run, place):
    words = ["texts", "rows.jsonl", "stories.txt", "--scorer", "other", "--draws", "50"]
    code, out, err = run(*words, "--out", "texts", "--json")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["a"]["texts"] == found["b"]["texts"] == 40
    assert found["a"]["tokens_of_ngrams"] == found["b"]["tokens_of_ngrams"]
    assert [each["verdict"] for each in found["verdicts"]] == ["no difference"] * 3
    assert found["differences"]["cross_entropy"]["value"] == pytest.approx(0, abs=1e-5)
    assert json.loads((place / "texts" / "texts.json").read_text())["a"]["name"] == "rows.jsonl"
    assert "<svg" in (place / "texts" / "texts.html").read_text(encoding="utf-8")
    code, _, err = run(*words, "--out", "texts")
    assert (code, "--overwrite" in err) == (2, True)
    assert run(*words, "--out", "texts", "--overwrite")[0] == 0
    code, out, _ = run("texts", "rows.jsonl", "--tokenizer", "ar", "--length", "16", "--draws", "50")
    assert code == 0
    assert "entropy of 3-grams" in out
    assert "A - B" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["texts", "nowhere.jsonl"], "no such file"),
        (["texts", "rows.jsonl", "--paired"], "needs a second set"),
        (["texts", "rows.jsonl", "--field", "prompt"], "no field 'prompt'"),
        (["texts", "rows.jsonl", "--scorer", "dlm"], "the scorer has full attention"),
        (["texts", "rows.jsonl", "--embedder", "ar"], "modules.json"),
        (["texts", "rows.jsonl", "--out", "stories.txt"], "is a file"),
        (["texts", "rows.jsonl", "--out", "ar", "--overwrite"], "that no report left there"),
        (["quality", "dlm", "--scorer", "other", "--steps", "4,x"], "steps is '4,x'"),
        (["quality", "dlm", "--scorer", "other", "--temperatures", "0"], "temperatures is '0'"),
        (
            ["quality", "dlm", "--scorer", "dlm", "--data", "stories.txt", "--count", "10", "--length", "8"],
            "full attention",
        ),
        (
            ["quality", "dlm", "--scorer", "other", "--data", "stories.txt", "--all", "--length", "999"],
            "lower --length",
        ),
        (["quality", "dlm", "--scorer", "other", "--decoder", "nonsense"], "no decoder called"),
    ],
)
def test_mistakes_are_one_sentence(run, words, said):
    code, _, err = run(*words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
