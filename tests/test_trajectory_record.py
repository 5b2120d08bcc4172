"""Trajectories are what a plain loop over the model finds; perturbed runs go on where they were left."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from models import MASK, TINY, tiny

pytest.importorskip("sklearn", reason="scikit-learn is not there to fit probes: pip install 'unveil[eval]'")
from unveil import cli, hub
from unveil.attention import Attention
from unveil.codecs.text import Text
from unveil.evaluate.trajectory import perturbation, recording, study
from unveil.evaluate.trajectory.record import record
from unveil.evaluate.trajectory.sequences import Sequences
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Transformer

STEPS = 5


def windows(rows: int = 4, length: int = 14) -> Sequences:
    tokens = np.random.default_rng(3).integers(0, MASK, (rows, length)).astype(np.int32)
    maskable = np.ones((rows, length), bool)
    maskable[:, 0] = False
    return Sequences(tokens, (tokens % 3).astype(np.int16), maskable, np.arange(rows, dtype=np.int32) * 2)


def recorded(model, order="confidence", **options):
    some = windows()
    return record(model, some, some.hidden(0.6, 1), order, STEPS, seed=1, **options)


def by_hand(model, tokens: np.ndarray, hidden: np.ndarray):
    """LLaDA's loop for one window, written out: an equal share of the surest blanks every step."""
    text = torch.from_numpy(np.where(hidden, MASK, tokens))[None].long()
    rows, states = [], []
    network = model.model if model.shifted else model
    for step in range(STEPS):
        heard = []
        hooks = [b.register_forward_hook(lambda _, __, out, to=heard: to.append(out[0])) for b in network.blocks]
        with torch.no_grad():
            logits = model(text)[0].clone()
        for hook in hooks:
            hook.remove()
        logits[:, MASK] = -torch.inf
        p = logits.double().softmax(-1)
        open_ = text[0] == MASK
        best = torch.where(open_, logits.argmax(-1), text[0])
        sure = p.gather(1, best[:, None])[:, 0]
        entropy = -(p * p.clamp_min(1e-300).log()).sum(-1)
        rows.append((best.numpy(), sure.numpy(), entropy.numpy(), open_.numpy()))
        states.append(torch.stack(heard, 1).numpy())
        count = -(-int(open_.sum()) // (STEPS - step))
        chosen = sure.masked_fill(~open_, -1).topk(count).indices
        text[0, chosen] = best[chosen]
    return rows, states


@pytest.mark.parametrize("shifted", [False, True])
def test_a_recording_is_what_a_plain_loop_finds(shifted):
    model, some = tiny(shifted=shifted, sharp=6.0), windows()
    hidden = some.hidden(0.6, 1)
    found = recorded(model, stated=100, stated_steps=np.array([0, 2, 4]), batch=3)
    assert hidden.sum(1).tolist() == [8] * 4  # 0.6 of 13
    for row in range(4):
        mine = found.row == row
        place = found.place[mine]
        rows, states = by_hand(model, some.tokens[row], hidden[row])
        opened = np.stack([open_[place] for *_, open_ in rows], 1)
        for step, (best, sure, entropy, _) in enumerate(rows):
            assert np.array_equal(found.predicted[mine, step], best[place])
            np.testing.assert_allclose(found.probability[mine, step], sure[place], rtol=1e-3)
            np.testing.assert_allclose(found.entropy[mine, step], entropy[place], rtol=1e-3, atol=1e-4)
        assert np.array_equal(found.revealed[mine], opened.sum(1) - 1)
        for index, step in enumerate([0, 2, 4]):
            wanted = states[step][place - int(shifted)]
            np.testing.assert_allclose(found.states[mine, index], wanted, rtol=5e-3, atol=5e-3)
    assert np.array_equal(found.stated, np.arange(32))
    kept = found.kept(found.probability)
    at = found.revealed[:, None]
    assert np.array_equal(kept[:, -1], np.take_along_axis(found.probability, at.astype(int), 1)[:, 0])


def test_orders_reveal_equal_shares_and_batches_change_nothing():
    model = tiny(sharp=6.0)
    for order in ("confidence", "random"):
        found, other = recorded(model, order, batch=32), recorded(model, order, batch=1)
        assert np.array_equal(found.predicted, other.predicted)
        for row in range(4):
            assert np.bincount(found.revealed[found.row == row], minlength=STEPS).tolist() == [2, 2, 2, 1, 1]
    same = recorded(tiny(sharp=3.0), "random")
    assert np.array_equal(found.revealed, same.revealed)  # a random order does not depend on what the model says
    with pytest.raises(ValueError, match="no order called 'left'; there are: confidence, random"):
        recorded(model, "left")


def test_a_perturbed_run_goes_on_where_it_was_left():
    model = tiny(sharp=6.0)
    for order in ("confidence", "random"):
        base = recorded(model, order)
        nothing = np.zeros(len(base.row), bool)
        look = Attention()
        for step in (1, 3):
            end = perturbation.ended(model, base, step, nothing, base.row, base.place, order, "same", 2, 4, 3, look)
            assert np.array_equal(end, base.predicted[:, -1])
        steps = np.array([1, 3])
        found = {rule: perturbation.disturb(model, base, steps, rule, share=0.5, more=2) for rule in perturbation.RULES}
        assert found["same"].hit.sum(0).tolist() == [4, 12]  # of 2 and of 6 in each of 4 windows
        for each in found.values():
            assert np.array_equal(each.hit, found["same"].hit)
            written = base.revealed[:, None] < steps
            assert not (each.hit & ~written).any()
            assert np.array_equal(each.before, base.right[:, -1])
        assert not found["none"].after[found["none"].hit].any()  # counted as wrong
    with pytest.raises(ValueError, match="no budget rule called 'all'; there are: none, same, more"):
        perturbation.disturb(model, base, steps, "all")


def test_block_and_autoregressive_models():
    model = tiny("block", 4, sharp=6.0)
    found = recorded(model, stated=8, stated_steps=np.array([0, 4]))
    assert found.about["attention"] == "block"
    assert (found.predicted >= 0).all()
    assert np.isfinite(found.entropy).all()
    assert found.states.any((2, 3)).all()
    with pytest.raises(ValueError, match="block by block"):
        perturbation.disturb(model, found, np.array([2]), "same")
    assert recorded(tiny("leader", 4, shifted=True)).about["attention"] == "full"
    with pytest.raises(ValueError, match="no trajectory: adapt it first"):
        recorded(tiny("causal"))


def test_files(tmp_path):
    found = recorded(tiny(), stated=8, stated_steps=np.array([0, 4]))
    path = tmp_path / "runs" / "one.npz"
    found.save(path)
    again = recording.load(path)
    assert again.about == found.about
    for name in recording.NAMES:
        assert np.array_equal(getattr(again, name), getattr(found, name))
    assert [each.name for each in path.parent.iterdir()] == ["one.npz"]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"one\.npz is damaged"):
        recording.load(path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="it lacks tokens"):
        recording.load(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match=r"text\.npz is no \.npz file"):
        recording.load(tmp_path / "text.npz")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masks": (0.0,)}, "shares above 0"),
        ({"orders": ("left",)}, "there are: confidence, random"),
        ({"steps": 1}, "at least 2"),
        ({"seeds": 0}, "seeds is 0"),
        ({"share": 0.0}, "share is 0.0"),
        ({"perturbed": -1}, "perturbed is -1"),
        ({"probe_steps": 99}, "steps to probe"),
        ({"length": 1}, "length is 1"),
    ],
)
def test_a_plan_that_makes_no_sense(options, said):
    with pytest.raises(ValueError, match=said):
        study.Plan(**options)


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random model with the tokenizer of the embedded ones, and text in English and in Python."""
    top = tmp_path_factory.mktemp("trajectory")
    text = Text.load(Path(hub.__file__).parent / "models" / "stdlib-dlm")
    torch.manual_seed(0)
    shape = replace(TINY, vocab=4097, mask_id=4096, qk_norm=None, context=64)
    for name, kind in (("full", "full"), ("parent", "causal")):
        model = Transformer(shape if kind == "full" else replace(shape, mask_id=-1)).eval()
        model.attention = Attention(kind)
        hub.save(Shifted(model) if kind == "full" else model, top / name, text)
    line = "The old man said that {} had {} horses, and she went away to see them in the green field.\n"
    (top / "a.txt").write_text("".join(line.format(name, i) for i, name in enumerate(["Peter", "he", "Anna"] * 30)))
    (top / "code").mkdir()
    (top / "code" / "b.txt").write_text("x = (\n" * 200)
    return top


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["unveil", "trajectory", *words])
        with pytest.raises(SystemExit) as found:
            cli.main()
        return (found.value.code or 0, *capsys.readouterr())

    return command


QUICK = ["--steps", "6", "--seeds", "2", "--sequences", "7", "--length", "24", "--perturbed", "2", "--probed", "160"]
QUICK += ["--perturb-steps", "2", "--probe-steps", "2", "--types", "5", "--mask", "0.5", "--orders", "confidence"]


def test_the_command_resumes_to_the_same_numbers(run, folder, monkeypatch, tmp_path):
    words = [str(folder / "full"), "--data", str(folder / "a.txt"), *QUICK]
    code, out, err = run(*words, "--out", "one", "--json")
    assert code == 0, err
    whole = json.loads(out.splitlines()[-1])
    assert {"trajectory.html", "trajectory.json"} <= set(whole["files"])
    (cell,) = whole["cells"]
    assert (whole["labels"], whole["attention"], cell["sequences"]) == ("english", "full", 14)
    assert {"settling", "sureness", "recovery", "sensitivity"} <= cell.keys()
    assert all(claim["verdict"] in claim["sentence"] for claim in cell["claims"])
    page = (tmp_path / "one" / "trajectory.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")  # it needs nothing else
    assert len(json.loads(page.split('type="application/json">')[1].split("</script>")[0])) == 3
    code, _, err = run(*words, "--out", "one")
    assert code == 2
    assert "holds a finished study" in err

    saved, save = [], recording.Recording.save

    def stopping(self, path):
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        save(self, path)

    monkeypatch.setattr(recording.Recording, "save", stopping)
    assert run(*words, "--out", "two")[0] != 0
    assert not (tmp_path / "two" / "trajectory.json").exists()
    monkeypatch.setattr(recording.Recording, "save", save)
    code, _, err = run(*words, "--out", "two", "--steps", "7")
    assert code == 2
    assert "unfinished study of something else, steps (6 there, 7 here)" in err
    first = saved[0].stat().st_mtime_ns
    code, out, err = run(*words, "--out", "two", "--json")
    assert code == 0, err
    assert saved[0].stat().st_mtime_ns == first
    assert json.loads(out.splitlines()[-1])["cells"] == whole["cells"]


def test_the_benchmark_tells_what_was_published_beside_it(run, folder, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    words = [str(folder / "full"), "--data", str(folder / "a.txt"), *QUICK, "--probed", "0", "--out", "work/full"]
    assert run(*words)[0] == 0
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path), "--pictures", str(tmp_path / "pictures")]
    import_module("emergence").main([str(folder / "full"), *places])  # the study is there and is not made again
    found = json.loads((tmp_path / "emergence.json").read_text())
    assert {"date", "commit", "machine"} <= found.keys()
    told = (tmp_path / "emergence.md").read_text()
    for claim in found["models"]["full"]["cells"][0]["claims"]:
        assert f"| {claim['claim']} | {claim['verdict']}" in told
    assert {path.name for path in (tmp_path / "pictures").iterdir()} <= {"emergence-full.png", "emergence-full-map.png"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MODEL", "--mask", "half"], "expected shares with commas"),
        (["MODEL", "--mask", "1.5"], "shares above 0 and at most 1"),
        (["MODEL", "--orders", "left"], "there are: confidence, random"),
        (["MODEL", "--labels", "french"], "there are: auto, english, python"),
        (["MODEL", "--length", "99"], "the model's context holds 64"),
        (["MODEL", "--sequences", "900"], "lower --sequences or --length"),
        (["MODEL", "--labels", "python", "--data", "CODE"], "no source of Python"),
        (["PARENT"], "adapt it first"),
        (["MODEL", "--out", "full"], "no study of trajectories left there"),
        (["MODEL", "--out", "file"], "is a file"),
        (["MODEL", "--data", "nowhere.txt"], "no such file or folder"),
    ],
)
def test_a_mistake_is_one_sentence(run, folder, tmp_path, words, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    named = {"MODEL": str(folder / "full"), "PARENT": str(folder / "parent"), "CODE": str(folder / "code")}
    given = [named.get(word, word) for word in words]
    given = given if "--data" in given else [*given, "--data", str(folder / "a.txt")]
    options = list(QUICK)
    for name in words:
        if name in options:
            at = options.index(name)
            del options[at : at + 2]
    given = given if "--out" in given else [*given, "--out", "fresh"]
    code, _, err = run(*options, *given)
    assert code == 2
    assert said in err
    assert err.count("unveil:") == 1
    assert not (tmp_path / "fresh" / "trajectory.json").exists()
