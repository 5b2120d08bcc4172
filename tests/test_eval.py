"""`unveil eval` measures, compares, goes on after a stop with the same numbers, and refuses what it cannot do."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from math import comb

import numpy as np
import pytest
import torch
from test_conditional import Oracle
from test_likelihood import Flat
from toy import LETTERS, Toy, checkpoint, letters, network

from unveil import cli
from unveil.cli.evaluate import built, parted
from unveil.context import EVERYTHING
from unveil.denoiser import Denoiser
from unveil.evaluate.intervals import mcnemar, spread
from unveil.evaluate.suite import Candidate, How, Part, Result, evaluate, items, refusal
from unveil.evaluate.unfinished import Unfinished
from unveil.evaluate.versus import at_chance, lines
from unveil.tasks import Choosing, Question, Reading

NUMBERS = np.random.default_rng(5)


@dataclass
class Next(Choosing):
    """Which letters come next in the alphabet; the wrong option leaves one out."""

    def questions(self, count, split="test", seed=0):
        wrong = lambda i: LETTERS[i + 2 : i + 4] + LETTERS[i + 5]
        return [
            Question((LETTERS[i : i + 2],) * 2, ((LETTERS[i + 2 : i + 5], wrong(i))[:: 1 - 2 * (i % 2)]), i % 2)
            for i in (n % 8 for n in range(count))
        ]

    def available(self, split="test"):
        return 20


@dataclass
class Texts(Reading):
    def texts(self, count, split="test", seed=0):
        return ["abc defg hij klm", "mnab", "cd ef gh"][:count]

    def available(self, split="test"):
        return 3


class Alphabet(Oracle):
    """Letters in a row, counted from the first behind the token that begins a text."""

    def forward(self, tokens, ctx=EVERYTHING):
        return super().forward(torch.cat([tokens[:, 1:2] - 1, tokens[:, 1:]], 1), ctx)


def of(model: Denoiser, name: str = "one") -> Candidate:
    return Candidate(name, model, letters())


def test_an_oracle_gets_everything_and_a_uniform_model_log_v():
    task = Next()
    found = evaluate(of(Alphabet()), "next", task, items(task, How()), How(draws=4))
    assert found.items == 20
    assert all(np.mean(values) == 1 for values in found.part.figures.values())
    assert found.chance == dict.fromkeys(found.part.figures, 0.5)
    flat, texts = of(Flat()), Texts()
    asked = [text.replace("h", "a") for text in ("abcdef", "abab")]
    weighed = evaluate(flat, "texts", texts, asked, How(draws=3))
    assert weighed.values("nats_per_token").tolist() == pytest.approx([math.log(7)] * 2, rel=1e-5)


def test_raw_and_normalised_choices_differ_as_they_should():
    """A uniform model finds the shorter option likelier, and both equally likely per token."""
    task = [Question(("ab",) * 2, ("cde", "cdefg"), 1), Question(("ab",) * 2, ("cde", "cd"), 1)]
    found = evaluate(of(Flat()), "lengths", Next(), task, How(draws=2))
    assert found.part.figures["accuracy"] == [0.0, 1.0]
    assert found.part.figures["accuracy_per_token"] == found.part.figures["accuracy_per_character"]
    grid = evaluate(of(Flat()), "lengths", Next(), task, How(protocol="diffullama"))
    assert list(grid.part.figures) == ["accuracy"]
    assert grid.forwards == pytest.approx(2 * 32, abs=64)


@pytest.mark.parametrize("kind", ["full", "leader", "causal"])
def test_what_goes_on_gets_the_same_numbers(kind, tmp_path):
    candidate = of(network(kind, 4 if kind == "leader" else None))
    for task in (Next(), Toy(), Texts()):
        asked, how = items(task, How(limit=20)), How(draws=3, limit=20)
        whole = evaluate(candidate, "t", task, asked, how)
        kept, stop = Unfinished(tmp_path / f"{type(task).__name__}.json", {"a": 1}), KeyboardInterrupt()

        def stopped(done, total, stop=stop):
            raise stop

        with pytest.raises(KeyboardInterrupt):
            evaluate(candidate, "t", task, asked, how, kept=kept, report=stopped)
        again = Unfinished(kept.path, {"a": 1})
        assert again.resume() == 1
        found = evaluate(candidate, "t", task, asked, how, kept=again)
        assert found.part.figures == whole.part.figures
        assert found.part.forwards == whole.part.forwards


def test_figures_are_told_apart_by_kind_and_beside_another():
    scores = [1.0, 0.0, 1.0, 1.0]
    one = Result("a", "t", Part({"accuracy": scores}, forwards=[1.0] * 4), ["x", "x", "y", "y"], {"accuracy": 0.5})
    other = Result("b", "t", Part({"accuracy": [0.0] * 4}, forwards=[1.0] * 4), ["x", "x", "y", "y"], {"accuracy": 0.5})
    whole, x, y = lines([one], [other])
    assert (whole.kind, x.kind, y.kind) == ("", "x", "y")
    assert (whole.interval.mean, x.interval.mean, y.interval.mean) == (0.75, 0.5, 1.0)
    assert whole.verdict == "at chance"  # four items tell little
    assert whole.versus is not None
    assert whole.versus.difference is not None
    assert whole.versus.difference.mean == 0.75
    assert whole.versus.p == pytest.approx(0.25)  # three to nothing, two-sided
    assert "At chance (1 of 1): t." in at_chance([whole, x, y])


def test_mcnemar_is_the_binomial_test():
    one, other = (NUMBERS.integers(2, size=60).astype(float) for _ in range(2))
    b, c = int(((one == 1) & (other == 0)).sum()), int(((one == 0) & (other == 1)).sum())
    exact = min(1.0, 2 * sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c))
    assert mcnemar(one, other) == pytest.approx(exact)
    assert mcnemar(one, one) == 1.0
    stats = pytest.importorskip("scipy.stats")
    assert mcnemar(one, other) == pytest.approx(stats.binomtest(min(b, c), b + c).pvalue)


def test_a_bootstrap_agrees_with_the_normal_interval():
    values = NUMBERS.normal(3, 2, 400)
    found = spread(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.03)
    weights = NUMBERS.integers(1, 9, 400).astype(float)
    assert spread(values, weights).mean == pytest.approx((values * weights).sum() / weights.sum())
    assert spread(values[:1]).low == -math.inf


def test_what_a_model_lacks_is_told():
    parent, toy = of(network("causal")), Toy(tail="de")
    said = refusal(parent, toy, toy.examples(2), How())
    assert said is not None
    assert "fills no blanks" in said
    full = of(network("full"))
    assert "predicts no next token" in str(refusal(full, Next(), Next().questions(1), How(mode="exact")))
    assert "neither a likelihood nor a bound" in str(
        refusal(full, Texts(), Texts().texts(1), How(protocol="diffullama"))
    )
    assert refusal(full, toy, toy.examples(1), How()) is None
    with pytest.raises(ValueError, match="has no items"):
        evaluate(full, "t", Next(), [], How())


def test_specs_are_parted_outside_of_brackets():
    assert parted(["a,b(c=1, d=[2,3]);e", "f"]) == ["a", "b(c=1, d=[2,3])", "e", "f"]
    assert parted(["sudoku(data='x,y.csv'),a"]) == ["sudoku(data='x,y.csv')", "a"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unveil", "eval", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, error = capsys.readouterr()
        return int(stop.value.code or 0), out, error

    return command


@pytest.fixture
def places(tmp_path):
    checkpoint(tmp_path / "dlm", "leader", 4)
    checkpoint(tmp_path / "ar", "causal")
    (tmp_path / "sets").mkdir()
    rows = [{"query": "abc", "choices": ["de", "fgh"], "gold": i % 2} for i in range(6)]
    (tmp_path / "sets" / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_command_leaves_a_report(run, places):
    words = ["dlm", "--tasks", "piqa,countdown(length=4)", "--tasks-dir", "sets", "--limit", "5", "--draws", "2"]
    code, out, error = run(*words, "--compare", "ar", "--out", "report", "--json")
    assert code == 0, error
    about = json.loads(out.splitlines()[-1])
    assert about["files"] == ["eval.html", "eval.json", "eval.md", "items.jsonl"]
    first = about["lines"][0]
    assert (first["task"], first["items"], first["chance"]) == ("piqa", 5, 0.5)
    assert first["low"] <= first["mean"] <= first["high"]
    assert first["difference"]["low"] <= first["mean"] - first["other"]["mean"] <= first["difference"]["high"]
    assert 0 <= first["mcnemar_p"] <= 1
    assert about["command"].startswith("unveil eval dlm --tasks 'piqa,countdown(length=4)'")
    page, told = (places / "report/eval.html").read_text(), (places / "report/eval.md").read_text()
    assert "<svg" in page
    assert all(word in page and word in told for word in ("McNemar p", "piqa", "forwards per item", "seconds"))
    rows = [json.loads(line) for line in (places / "report/items.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert np.mean([r["accuracy"] for r in rows if r["model"] == "dlm" and r["task"] == "piqa"]) == first["mean"]
    code, _, error = run(*words, "--out", "report")
    assert code == 2
    assert "report exists and is not empty: choose another folder, or --overwrite" in error


def test_bad_input_is_refused(run, places):
    (places / "sets" / "siqa.jsonl").write_text('{"ctx": 1}\n')
    (places / "full").mkdir()
    (places / "full" / "mine.txt").write_text("kept")
    for words, said in {
        ("dlm", "--tasks", "nonsense"): "no task called 'nonsense'; there are:",
        ("dlm", "--tasks", ","): "no task is named; there are: arc_easy",
        ("dlm", "--tasks", "piqa,piqa"): "each task is named once",
        ("dlm", "--tasks", "piqa", "--tasks-dir", "absent"): "no such folder: absent",
        ("dlm", "--tasks", "siqa", "--tasks-dir", "sets"): "siqa.jsonl, line 1: the field 'query' is missing",
        ("dlm", "--tasks", "gsm8k", "--tasks-dir", "sets"): "no file of this task; expected one named gsm8k_test.jsonl",
        ("dlm", "--tasks", "sudoku", "--limit", "0"): "limit is 0",
        ("dlm", "--tasks", "sudoku", "--compare", "dlm"): "compared with itself",
        ("dlm", "--tasks", "sudoku", "--protocol", "seed"): "there are: exact-count, diffullama",
        ("dlm", "--tasks", "sudoku", "--mode", "best"): "there are: auto, exact, bound",
        ("dlm", "--tasks", "sudoku", "--decoder", "best"): "no decoder called 'best'",
        ("dlm", "--tasks", "sudoku", "--draws", "0"): "draws is 0",
        ("ar", "--tasks", "infill"): "ar cannot do infill: an autoregressive model continues texts and fills no blanks",
        ("dlm", "--tasks", "sudoku", "--out", "full"): "full exists and is not empty",
        ("dlm", "--tasks", "sudoku", "--out", "full", "--overwrite"): "holds something that no evaluation left there",
        ("absent/model", "--tasks", "sudoku", "--limit", "2"): "there is no folder absent/model",
    }.items():
        code, out, error = run(*words)
        assert code == 2, words
        assert said in error, words
        assert "Traceback" not in error
        assert not out
    assert (places / "full" / "mine.txt").read_text() == "kept"
    assert not list(places.glob(".*partial"))


def test_code_is_run_only_where_it_is_allowed(monkeypatch):
    monkeypatch.setattr("unveil.tasks.countdown.Countdown.runs_code", True)
    with pytest.raises(ValueError, match="countdown runs code that a model wrote: allow it with --allow-code"):
        built(["countdown"], None, allow_code=False)
    assert list(built(["countdown"], None, allow_code=True)) == ["countdown"]
