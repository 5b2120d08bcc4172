"""`unveil bench` and `unveil calibrate` as a user types them: their output, their files, and each mistake."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from commands import command
from toy import checkpoint

import unveil.tasks
from unveil import spec
from unveil.evaluate.problems import Subject


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A full and a leader model, a parent, and a place where the toy task is found."""
    top = tmp_path_factory.mktemp("bench")
    checkpoint(top / "full")
    checkpoint(top / "leader", "leader", 4)
    checkpoint(top / "parent", "causal")
    (top / "tasks").mkdir()
    lines = '"""A toy."""\n\nfrom toy import Toy\n\n__all__ = ["Toy"]\n'
    (top / "tasks" / "toy.py").write_text(lines, encoding="utf-8")
    return top


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, folder):
    """Run a command in this process: its exit code, its output and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unveil.tasks, "__path__", [*unveil.tasks.__path__, str(folder / "tasks")])
    monkeypatch.setenv("COLUMNS", "110")

    return partial(command, monkeypatch, capsys)


QUICK = ["--task", "toy", "--count", "12", "--seeds", "2", "--timed", "1", "--runs", "1"]


def test_bench(run, folder, tmp_path):
    ways = [
        "--decoders",
        "threshold(tau=0.4);prophet(high=3, mid=2)",
        "--decoders",
        "ahd",
        "--caches",
        "recompute;dual",
    ]
    words = ["bench", str(folder / "full"), *QUICK, *ways]
    code, out, err = run(*words, "--out", "results", "--json")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert [one["name"] for one in found["measured"]] == [
        "vanilla",
        "confidence, 3 steps a block",
        "confidence, 1 step a block",
        "threshold(tau=0.4) with recompute",
        "threshold(tau=0.4) with dual",
        "prophet(high=3, mid=2) with recompute",
        "prophet(high=3, mid=2) with dual",
        "ahd with recompute",
    ]
    assert [(one["decoder"], one["cache"]) for one in found["skipped"]] == [("ahd", "dual")]
    assert len(found["measured"][0]["quality_per_draw"]) == 2
    assert found["measured"][0]["over_vanilla"] == 1
    assert "measuring 8 ways" in err
    assert {"bench.html", "bench.json"} <= set(found["files"])
    assert json.loads((tmp_path / "results" / "bench.json").read_text())["advice"] == found["advice"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    code, _, err = run(*words, "--out", "results")
    assert (code, "--overwrite" in err) == (2, True)
    code, out, err = run(*words, "--out", "results", "--overwrite")
    assert code == 0, err
    assert "skipped ahd with dual" in out
    assert found["measured"][3]["name"] in out


def test_a_stopped_bench_goes_on(run, folder, tmp_path, monkeypatch):
    """Whatever was measured before Ctrl-C is not measured again, and nothing else is taken for it."""
    words = ["bench", str(folder / "full"), *QUICK, "--decoders", "threshold;ahd", "--caches", "recompute"]
    whole = json.loads(run(*words, "--json")[1].splitlines()[-1])
    solve, calls = Subject.solve, []

    def interrupted(self, *given):
        calls.append(given[1].decoder)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return solve(self, *given)

    monkeypatch.setattr(Subject, "solve", interrupted)
    stop = 5  # two calls of sixteen problems for each way
    code, _, err = run(*words, "--out", "results")
    assert code != 0
    assert "the same command goes on" in err
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["unfinished.json"]
    kept = json.loads((tmp_path / "results" / "unfinished.json").read_text())["ways"]
    assert [("solved" in one, len(one["speeds"])) for one in kept.values()] == [(True, 1)] * 2 + [(False, 1)] * 3
    code, _, err = run(*words, "--out", "results", "--seeds", "3")
    assert (code, "seeds (2 there, 3 here)" in err) == (2, True)
    calls.clear()
    stop = 0
    monkeypatch.setattr(Subject, "time", lambda *_: pytest.fail("timed again"))
    monkeypatch.setattr(Subject, "memory", lambda *_: pytest.fail("measured again"))
    code, out, err = run(*words, "--out", "results", "--json")
    assert code == 0, err
    assert "going on with 5 ways" in err
    assert len(calls) == 6
    found = json.loads(out.splitlines()[-1])
    for one, same in zip(found["measured"], whole["measured"], strict=True):
        assert (one["name"], one["quality"], one["forwards"]) == (same["name"], same["quality"], same["forwards"])
    assert "unfinished.json" not in {path.name for path in (tmp_path / "results").iterdir()}


def test_bench_beside_autoregressive_decoding(run, folder):
    words = [*QUICK, "--decoders", "threshold", "--caches", "causal", "--dtype", "bfloat16", "--json"]
    led = json.loads(run("bench", str(folder / "leader"), *words)[1].splitlines()[-1])
    assert [one["role"] for one in led["measured"]] == ["vanilla", "fewer steps", "autoregressive", "decoder"]
    assert (led["block"], led["dtype"]) == (4, "bfloat16")
    code, out, err = run("bench", str(folder / "full"), *words[:-1], "--caches", "dual", "--ar", str(folder / "parent"))
    assert code == 0, err
    assert "autoregressive" in out


def test_calibrate_prophet(run, folder, tmp_path):
    words = ["calibrate", "prophet", str(folder / "full"), "--task", "toy", "--count", "50", "--json"]
    code, out, err = run(*words, "--out", "prophet.json", "--region", "prophet(region='blank')", "--agreement", "0.8")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    built = spec.build("decoders", found["spec"])
    assert built.region == "blank"
    assert built.high >= 0
    assert found["traces"] == 50
    assert json.loads((tmp_path / "prophet.json").read_text())["spec"] == found["spec"]
    assert run(*words[:-1])[1].splitlines()[-1].startswith("prophet(high=")


def test_calibrate_tspd(run, folder, tmp_path):
    words = ["calibrate", "tspd", str(folder / "full"), "--task", "toy", "--count", "30", "--json"]
    code, out, err = run(*words, "--out", "sensor.safetensors")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert (tmp_path / "sensor.safetensors").is_file()
    assert spec.build("decoders", found["spec"]).net is not None
    assert found["prompts"] == 30


MISTAKES = [
    (["bench", "FULL", "--task", "nonsense"], "there are: arithmetic"),
    (["bench", "FULL", "--task", "toy", "--decoders", "nonsense"], "there are: ahd"),
    (["bench", "FULL", "--task", "toy", "--caches", "nonsense"], "there are: causal"),
    (["bench", "FULL", "--task", "toy", "--guide", "nonsense"], "there are: "),
    (["bench", "FULL", "--task", "toy", "--decoders", "threshold(mu=1)"], "no option 'mu'"),
    (["bench", "FULL", "--task", "toy", "--count", "5"], "count is 5"),
    (["bench", "FULL", "--task", "toy", "--seeds", "0"], "seeds is 0"),
    (["bench", "FULL", *QUICK, "--batch", "0"], "batch is 0"),
    (["bench", "FULL", *QUICK, "--dtype", "float8"], "unknown dtype 'float8'"),
    (["bench", "FULL", *QUICK, "--ar", "FULL"], "next token"),
    (["bench", "FULL", "--task", "toy", "--out", "FULL", "--overwrite"], "no bench left"),
    (["bench", "FULL", "--task", "toy(length=5000)", "--count", "12"], "context"),
    (["calibrate", "prophet", "FULL", "--task", "toy", "--count", "10"], "at least 50"),
    (["calibrate", "prophet", "FULL", "--task", "toy", "--out", "p.txt"], ".json file"),
    (["calibrate", "prophet", "FULL", "--task", "toy", "--region", "threshold"], "expected prophet"),
    (["calibrate", "prophet", "LEADER", "--task", "toy(tail='ab')"], "leader model"),
    (["calibrate", "tspd", "FULL", "--task", "toy", "--count", "10", "--out", "s.safetensors"], "at least 20"),
    (["calibrate", "tspd", "FULL", "--task", "toy", "--out", "s.bin"], ".safetensors file"),
    (["calibrate", "tspd", "FULL", "--task", "toy(tail='ab')", "--out", "s.safetensors"], "middle of a text"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_a_mistake_is_one_sentence(run, folder, tmp_path, words, said):
    places = {"FULL": str(folder / "full"), "LEADER": str(folder / "leader")}
    code, _, err = run(*(places.get(word, word) for word in words))
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
