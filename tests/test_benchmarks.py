"""Each benchmark runs on tiny shapes and writes the figures it promises."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import pytest
import torch

from unveil import hub, spec
from unveil.start import start
from unveil.train import Recipe

FOLDER = Path(__file__).parent.parent / "benchmarks"
STORY = "Once upon a time there was a {} {} who lived in a {} house and liked to sing to the {} moon. "


@pytest.fixture
def script(monkeypatch, tmp_path):
    """A script or a piece of one, by name, as `python benchmarks/NAME.py` would find it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    return import_module


def results(folder: Path, name: str) -> dict:
    found = json.loads((folder / f"{name}.json").read_text())
    assert {"date", "commit", "machine"} <= found.keys()
    assert (folder / f"{name}.md").read_text().startswith("**")
    return found


def test_measure(script, tmp_path):
    measure = script("measure")
    assert measure.peak(64, seconds=0.01) > 0
    assert {"processor", "cores", "threads", "load", "torch", "memory_gb", "python"} <= measure.machine().keys()
    seconds = measure.interleaved({"one": lambda: None, "two": lambda: None}, repeats=3)
    assert [len(each) for each in seconds.values()] == [3, 3]
    assert measure.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0, "runs": 3}
    measure.put(tmp_path / "a" / "b.txt", "text")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_engine_cost(script, tmp_path):
    cost = script("engine_cost")
    words = ["--clients", "2", "--length", "9", "--prompt", "8", "--repeats", "1", "--results", str(tmp_path)]
    cost.main(words)
    found = results(tmp_path, "engine_cost")
    for work in ("threshold(tau=0.9), block 9", "confidence, block 1"):
        ways = found[work]
        assert set(ways) == {"one batch", *(way.name for way in cost.WAYS)}
        assert ways["one batch"]["of_batch"] == 1
        for one in ways.values():
            assert 0 < one["network"] < one["all"]
            assert one["positions"] >= 1
        assert ways["at once"]["rounds"] >= ways["one batch"]["calls"]
        assert 0 < ways["a round apart"]["canvases"] <= 2


def test_training_speed(script, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    speed = script("training_speed")
    recipe = speed.plan(2, 16)

    def here(name: str, *words: str) -> dict:
        return speed.memory("tiny", words[1], recipe, tmp_path / f"memory-{words[1]}-{len(list(tmp_path.iterdir()))}")

    monkeypatch.setattr(speed, "aside", here)
    monkeypatch.setattr(speed, "peak", lambda **given: 1e9)
    monkeypatch.setattr(speed, "bfloat16", lambda *given: False)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    words = ["--shape", "tiny", "--rows", "2", "--length", "16", "--repeats", "1", "--results", str(tmp_path)]
    speed.main([*words, "--compile"])
    assert compiled
    found = results(tmp_path, "training_speed")
    assert set(found["shapes"][0]["arms"]) == {"unveil", "plain", "unveil, compiled"}
    monkeypatch.setattr(speed, "bfloat16", lambda *given: True)
    speed.main(words)
    found = results(tmp_path, "training_speed")
    one = found["shapes"][0]
    assert set(one["arms"]) == {"unveil", "plain", "unveil, bfloat16", "plain, bfloat16"}
    assert abs(one["losses"]["unveil"] - one["losses"]["plain"]) < 1e-4
    for arm in one["arms"]:
        assert {"tokens_per_second", "share_of_peak", "peak_bytes", "seconds"} <= one["arms"][arm].keys()
        assert len(one["arms"][arm]["seconds"]) == 1
    assert len(one["ratios"]) == 3
    assert all(ratio["speed"] > 0 and ratio["memory"] > 0 for ratio in one["ratios"].values())
    assert found["peak_flops"] == {"float32": 1e9, "bfloat16": 1e9}


def test_training_speed_refuses_losses_that_differ(script, tmp_path):
    pytest.importorskip("transformers")
    speed = script("training_speed")
    model = speed.network(speed.SHAPES["tiny"], speed.FULL)
    theirs = speed.twin(model, tmp_path / "twin")
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="losses differ"):
        speed.compare(model, theirs, speed.plan(2, 16))


def test_decoding_speed(script, tmp_path):
    words = "--shape tiny --prompt 6 --length 16 --block 8 --steps 4 --repeats 1"
    script("decoding_speed").main([*words.split(), "--skip", "--results", str(tmp_path)])
    found = results(tmp_path, "decoding_speed")
    one = found["shapes"][0]
    arms = one["arms"]
    assert one["note"] == "speed only: random weights"
    assert one["plain_agrees_with_recompute"] == 1.0
    forwards = {arm: figures["forwards"] for arm, figures in arms.items()}
    assert forwards["plain, float64"] == forwards["recompute, full attention"] == 8
    assert forwards["dual cache, full attention"] == forwards["prefix cache, full attention"] == 8
    assert forwards["causal cache, leader"] == 10  # one more a block, for its leader
    assert forwards["autoregressive, leader, block 1"] == forwards["autoregressive, bare loop"] == 16
    for figures in arms.values():
        assert figures["tokens"] == 16
        assert figures["tokens_per_second"] > 0
    assert {"overhead", "bare_ms_per_forward"} <= arms["causal cache, leader"].keys()


def test_both_autoregressive_loops_write_the_same(script):
    speed, passes = script("decoding_speed"), script("study.passes")
    net = speed.network(speed.SHAPES["tiny"], speed.FULL)
    task = passes.Task(torch.arange(12).view(2, 6), 10, 5, 2)
    ours = speed.loops(net, task)["autoregressive, leader, block 1"].run()
    assert torch.equal(ours, passes.Autoregressive(net, task).run())


@pytest.fixture
def parent(tmp_path) -> list[str]:
    """A tiny parent, text to adapt it to, and the options that name them."""
    words = ["small", "red", "old", "kind", "tall", "cat", "boy", "king", "girl", "bird"]
    text = "<|endoftext|>".join(
        STORY.format(words[i % 10], words[(i + 3) % 10], words[(i * 7) % 10], words[(i * 3 + 1) % 10]) * 3
        for i in range(40)
    )
    (tmp_path / "stories.txt").write_text(text)
    data = str(tmp_path / "stories.txt")
    made = start(Recipe(data=data, vocab=300, width=16, layers=1, heads=2, steps=1, length=32))
    hub.save(made.model, tmp_path / "parent", made.text)
    (tmp_path / "more, of it.txt").write_text(text[: len(text) // 2])
    more = ["--data", str(tmp_path / "more, of it.txt")]
    return ["--parent", str(tmp_path / "parent"), "--data", data, *more, "--name", "tiny"]


def test_adaptation(script, tmp_path, monkeypatch, parent):
    pytest.importorskip("matplotlib")
    study = script("adaptation")
    words = "--steps 2 --rows 2 --length 32 --windows 4 --draws 1 --curve-every 1 --infills 2 --samples 2 --seeds 1"
    words = [*words.split(), "--sample-steps", "4", "32", "--temperatures", "0.7", "1.0", *parent]
    words += ["--work", str(tmp_path / "work"), "--results", str(tmp_path), "--figure", str(tmp_path / "a.png")]
    arms = ["parent", "continued", "random", "noshift", "block4", "leader16full"]
    study.main([*words, "--arms", *arms, "--shard", "1/2"])
    assert not (tmp_path / "adaptation-tiny.json").exists()
    study.main([*words, "--arms", *arms, "--shard", "2/2"])
    monkeypatch.setattr(study, "run", lambda *given: pytest.fail("what is finished is not run again"))
    study.main([*words, "--arms", *arms])
    found = results(tmp_path, "adaptation-tiny")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert list(found["arms"]) == arms
    assert [run["arm"] for run in found["runs"]] == arms
    for name, figures in found["arms"].items():
        assert {"bound", "autoregressive", "drift", "ratio", "infill_tokens", "entropy_32"} <= figures.keys(), name
        assert math.isfinite(figures["bound"]["mean"])
    led = next(run for run in found["runs"] if run["arm"] == "leader16full")
    assert led["elsewhere"].keys() == led["curves"].keys() == {"blocks_4", "blocks_16", "whole"}
    assert led["elsewhere"]["blocks_16"]["nats"] == led["score"]["nats"]  # these are its own blocks
    assert found["arms"]["leader16full"]["whole_ratio"]["mean"] > 0
    assert found["arms"]["continued"]["ratio"]["mean"] == 1.0
    kinds = {run["arm"]: run["score"]["kind"] for run in found["runs"]}
    assert kinds["parent"] == kinds["continued"] == "exact"
    assert {kinds[name] for name in arms[2:]} == {"bound"}
    random = next(run for run in found["runs"] if run["arm"] == "random")
    assert [tokens for tokens, _ in random["curve"]] == [0, 64, 128]


def test_adaptation_scored_alone(script, tmp_path, parent):
    """Nothing is filled in or written, and no table or figure speaks of it."""
    pytest.importorskip("matplotlib")
    words = "--steps 2 --rows 2 --length 32 --windows 4 --draws 1 --curve-every 1 --infills 0 --seeds 1"
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path), "--figure", str(tmp_path / "a.png")]
    words = [*words.split(), *parent, *places]
    script("adaptation").main([*words, "--arms", "continued", "ungrown-half"])
    found = results(tmp_path, "adaptation-tiny")
    assert found["real"] is None
    assert "infill_tokens" not in found["arms"]["continued"]
    assert {"blocks_4", "blocks_16", "whole", "bound"} <= found["arms"]["ungrown-half"].keys()
    said = (tmp_path / "adaptation-tiny.md").read_text()
    assert "infilling" not in said
    assert "as whole texts" in said
    assert "million tokens" in said
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_adaptation_says_what_is_missing(script, tmp_path, capsys):
    study = script("adaptation")
    with pytest.raises(SystemExit, match="--parent .*/nowhere"):
        study.main(["--parent", str(tmp_path / "nowhere")])


def test_finished_runs_are_found_under_the_key_of_their_plan(script):
    plan = script("study.arms").Plan
    assert plan("p", ("d",)).key == "8957f42e8dde"  # as it was when sources were one string
    assert plan("p", ("a", "b"), ("c",)).key == "68c00db0f370"
    assert plan("p", ("a,b",), ("c",)).key != plan("p", ("a", "b"), ("c",)).key


def test_shards_share_the_jobs(script, tmp_path):
    arms = script("study.arms")
    every = arms.jobs(list(arms.ARMS), 3, arms.Plan("p", ("d",)), tmp_path)
    parts = [arms.shard(every, number, 2) for number in range(2)]
    assert sorted(name for part in parts for name, _, _ in part) == sorted(name for _, name, _, _ in every)
    loads = [sum(arms.ARMS[name].cost for name, _, _ in part) for part in parts]
    assert abs(loads[0] - loads[1]) <= 1
    assert sum(name == "parent" for part in parts for name, _, _ in part) == 1  # it is the same for every seed


def test_mean_over_seeds(script):
    mean = script("study.page").mean
    assert mean([1.0, 3.0, None]) == (2.0, pytest.approx(1.0))
    assert mean([2.0]) == (2.0, None)
    assert mean([None]) == (None, None)


def test_perplexity_at_matched_entropy(script):
    matched = script("study.page").matched
    points = [{"steps": 8, "entropy": e, "nats": n} for e, n in ((3.0, 1.0), (4.0, 2.0))]
    assert matched(points, 8, 3.5) == pytest.approx(math.exp(1.5))
    assert matched(points, 8, 4.05) == pytest.approx(math.exp(2.0))
    assert matched(points, 8, 4.2) is None
    assert matched(points, 16, 3.5) is None


def test_tuning(script, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    tuning = script("tuning")
    monkeypatch.setattr(tuning, "WORK", tmp_path / "work")
    source = tmp_path / "gsm8k.jsonl"
    source.write_text("".join(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n" for i in range(40)))
    words = "--steps 2 --rows 2 --examples 60 --problems 2 --pair-steps 1 --pair-rows 1 --draws 1 --gsm8k-steps 1"
    words = [*words.split(), "--gsm8k-rows", "1", "--gsm8k-length", "32", "--source", str(source)]
    tuning.main([*words, "--results", str(tmp_path)])
    monkeypatch.setattr(tuning, "tuned", lambda *given: pytest.fail("what is finished is not run again"))
    tuning.main([*words, "--results", str(tmp_path)])
    runs = results(tmp_path, "tuning")["runs"]
    assert list(runs) == ["full", "lora", "preference", "preference-keep", "gsm8k"]
    assert runs["lora"]["merged_difference"]["float32_share"] < 1e-5
    assert runs["lora"]["merged_difference"]["float64"] < 1e-5
    assert runs["lora"]["trained"] < runs["full"]["trained"] / 10
    assert runs["preference"]["before"]["held_out_margin"] == pytest.approx(0, abs=1e-4)


@pytest.fixture
def pair(tmp_path, parent) -> list[str]:
    """A tiny autoregressive model and a masked one with its tokenizer, and the options that name them."""
    data = str(tmp_path / "stories.txt")
    shape = {"vocab": 300, "width": 16, "layers": 1, "heads": 2, "steps": 1, "length": 32}
    made = start(Recipe(data=data, objective="masked", shift="no", **shape))
    hub.save(made.model, tmp_path / "masked", made.text)
    return ["--ar", str(tmp_path / "parent"), "--dlm", str(tmp_path / "masked"), "--data", data]


def test_differences(script, tmp_path, monkeypatch, pair):
    pytest.importorskip("sklearn")
    study, variants = script("differences"), script("study.variants")
    assert len(variants.variants()) == 19
    assert list(variants.variants())[0] == "block 1"
    words = [*pair, "--texts", "12", "--prompt", "4", "--length", "6", "--blocks", "2", "3", "--dtype", "float32"]
    words += ["--draws", "50", "--rows", "5", "--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    monkeypatch.setattr(study, "READ", 3)
    study.main(words)
    monkeypatch.setattr(variants, "write", lambda *given, **options: pytest.fail("what is decoded is not done again"))
    study.main(words)
    found = results(tmp_path, "differences")
    assert set(found["sets"]) == {"real text", "AR", *variants.variants((2, 3))}
    assert {each["tokens"] for each in found["sets"].values()} == {12 * 6}
    assert found["sets"]["block 3, lcr"]["forwards"] == 6
    assert found["sets"]["block 3, dlcr"]["forwards"] <= 6
    assert [each["claim"] for each in found["findings"]][0] == "lcr lowers n-gram entropy against rr"
    assert set(found["findings"][0]["differences"]) == {f"block {b} H{n}" for b in (2, 3) for n in (1, 2, 3)}
    assert {"AR", "block 1"} == set(found["from_the_left"])
    assert found["scorer"].startswith("independent") or "NOT" in found["scorer"]


def test_differences_refuses_another_tokenizer(script, pair, tmp_path):
    study = script("differences")
    (tmp_path / "else.txt").write_text("<|endoftext|>".join(f"{i * i} bottles, {i} more" * 9 for i in range(40)))
    shape = {"vocab": 300, "width": 16, "layers": 1, "heads": 2, "steps": 1, "length": 32}
    other = start(Recipe(data=str(tmp_path / "else.txt"), objective="masked", **shape))
    hub.save(other.model, tmp_path / "other", other.text)
    with pytest.raises(SystemExit, match="different tokenizers"):
        study.main([*pair[:2], "--dlm", str(tmp_path / "other")])


def test_reading_from_the_left_is_the_likelihood_of_an_autoregressive_model(script, pair):
    variants = script("study.variants")
    from unveil.evaluate.likelihood import score
    from unveil.objectives import Batch

    model = hub.load_model(pair[1])
    rows = torch.randint(1, 290, (4, 9), generator=torch.Generator().manual_seed(0))
    answer = torch.ones_like(rows, dtype=torch.bool)
    answer[:, :3] = False
    exact = score(model, Batch(rows, answer)).nats
    assert variants.from_the_left(model, rows, 3)["nats"] == pytest.approx(exact, abs=1e-4)


def test_a_finding_says_how_much_of_it_holds(script):
    findings = script("study.findings")
    from unveil.evaluate.texts.resampling import Difference

    down, none, up = Difference(-1, -2, -0.5, -1), Difference(0.1, -1, 1, 0.1), Difference(1, 0.5, 2, 1)
    assert findings.Finding("c", -1, {"a": down, "b": down}).verdict == "holds"
    assert findings.Finding("c", -1, {"a": down, "b": none}).verdict == "holds in part: 1 of 2"
    assert findings.Finding("c", 1, {"a": down, "b": none}).verdict == "does not hold: 0 of 2, 1 of them reversed"
    assert findings.Finding("c", 0, {"a": none}).verdict == "holds"
    assert findings.Finding("c", 0, {"a": up, "b": none}).verdict == "holds in part: 1 of 2"


def test_training_parts(script, tmp_path):
    words = "--rows 1 --heads 1 --head-size 4 --length 10 --tokens 4 --vocab 7 --repeats 1 --results"
    script("training_parts").main([*words.split(), str(tmp_path)])
    parts = results(tmp_path, "training_parts")["parts"]
    assert [one["part"] for one in parts[:4]] == [f"attention, {n}" for n in ("next token", "full", "leader")] + [
        "loss, 7 tokens"
    ]
    assert {one["dtype"] for one in parts} == {"float32", "bfloat16"}
    assert all(one["ratio"] > 0 for one in parts)


def test_decoding_suite_asks_each_job_for_what_it_needs(script, capsys):
    suite = script("decoding_suite")
    for words, said in ((["--jobs", "cloze", "--full", "x"], "cloze wants --data"), ([], "sudoku-full wants --full")):
        with pytest.raises(SystemExit):
            suite.main(words)
        assert said in capsys.readouterr().err
    for job in suite.JOBS.values():
        spec.build("tasks", job.task.format(data="stories.txt"))
        for decoder in job.decoders.split(";"):
            spec.build("decoders", decoder)
        assert set(job.caches.split(";")) <= set(spec.names("caches"))
