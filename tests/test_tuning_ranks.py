"""Fine-tuning that several processes share: instructions, adapters and preferences give the numbers of one process."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from launching import launched, timeless, tuned

from unveil import cli, hub
from unveil.start import start
from unveil.train import Recipe

FIELDS = {
    "steps": 4,
    "rows": 4,
    "length": 24,
    "lr": 1e-2,
    "ema": 0.0,
    "held_out": 0.2,
    "save_every": 2,
    "chat": True,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Rows, pairs, and a small model."""
    folder = tmp_path_factory.mktemp("ranks")
    rows = [{"prompt": f"add {i} and {i}", "response": f" = {i + i}" + "!" * (i % 5)} for i in range(24)]
    pairs = [{"prompt": r["prompt"], "chosen": r["response"], "rejected": r["response"] + "1"} for r in rows]
    for name, found in {"rows": rows, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    sizes = {"vocab": 260, "width": 32, "layers": 2, "heads": 2}
    data = (str(folder / "rows.jsonl"),)
    made = start(Recipe(**{**FIELDS, **sizes}, data=data, objective="leader(n=3)"))
    hub.save(made.model, folder / "model", made.text)
    return folder


def close(history: list[dict], expected: list[dict]) -> None:
    assert [line["step"] for line in history] == [line["step"] for line in expected]
    for mine, theirs in zip(history, expected, strict=True):
        for name in theirs.keys() - {"parts"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), (name, mine["step"])
        assert mine.get("parts", {}) == pytest.approx(theirs.get("parts", {}), rel=1e-5, abs=1e-5)


KINDS = {
    "instructions": {"objective": "auto"},
    "adapter": {"objective": "auto", "lora": "r=2,alpha=4"},
    "preferences": {"objective": "preference(draws=2)", "data": "pairs"},
    "preferences, adapter": {"objective": "preference(draws=2,keep=0.5)", "data": "pairs", "lora": "r=2,alpha=4"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_one_process(place, tmp_path, kind):
    given = {**FIELDS, "parent": str(place / "model"), **KINDS[kind]}
    if "lora" in given:
        pytest.importorskip("peft")
    given["data"] = (str(place / f"{given.get('data', 'rows')}.jsonl"),)
    expected = tuned(tmp_path / "one", given)
    for mode in ("fsdp", "ddp") if "adapter" in kind else ("fsdp",):  # ddp of all weights is in test_ranks.py
        for history in launched(2, tuned, tmp_path / mode, {**given, "parallel": mode, "accumulate": 2}):
            close(history, expected)
        weights = [hub.load_model(tmp_path / name).parameters() for name in ("one", mode)]
        for one, other in zip(*weights, strict=True):
            # Adam divides a gradient by its own size. A weight whose gradient is little but rounding, as one of these
            # has with preferences (4e-5 apart where all others are within 1e-5), may be pushed differently.
            torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
            assert ((one - other).abs() > 1e-4).sum() <= 1
        names = [{path.name for path in (tmp_path / name).iterdir()} - {".job"} for name in ("one", mode)]
        assert names[0] == names[1]


def test_the_command_in_two_processes(place, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["unveil", "sft", str(place / "model"), "--data", str(place / "rows.jsonl"), "--problems", "2", "--json"]
    words += ["--steps", "3", "--rows", "4", "--length", "24", "--set", "dtype=float32", "--set", "held_out=0.2"]
    told, histories = [], []
    for name, more in (("one", []), ("two", ["--nproc", "2"])):
        monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / name), *more])
        with pytest.raises(SystemExit) as found:
            cli.main()
        said = capfd.readouterr()
        assert not found.value.code, said.err
        told.append(json.loads(said.out.splitlines()[-1]))
        assert said.out.count("\n") == 1, "one of the processes speaks"
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        histories.append(timeless([json.loads(line) for line in lines]))
    close(histories[1], histories[0])
    assert told[0]["held_out"] == pytest.approx(told[1]["held_out"], rel=1e-5)
    assert told[0]["exact_match"] == told[1]["exact_match"]
