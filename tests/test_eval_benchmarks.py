"""The benchmarks of evaluation run on tiny models and write the figures they promise."""

from __future__ import annotations

import json
import sys

import pytest
from test_benchmarks import results, script
from toy import checkpoint

__all__ = ["script"]  # the fixture


def test_choice_cost(script, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    cost = script("choice_cost")
    entrants = [f"{checkpoint(tmp_path / 'dlm', 'full')}@countdown"]
    entrants += [f"led={checkpoint(tmp_path / 'led', 'leader', 4)}@countdown"]
    words = [*entrants, "--questions", "3", "--options", "2", "--replicates", "4"]
    ends = ["--draws", "1", "3", "--reference", "8", "--figure", str(tmp_path / "f.png"), "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["choice_cost.py", *words, *ends])
    cost.main()
    full, led = results(tmp_path, "choice_cost")["models"]
    assert (full["asked"], led["asked"]) == ("dlm on countdown", "led on countdown")
    assert len(full["arms"]) == 1 + 4 * 2
    assert len(led["arms"]) == 1 + 5 * 2
    for each in (full, led):
        assert each["arms"][0]["forwards"] == 32
        assert all(min(arm["variances"]) > 0 and len(arm["variances"]) == 3 for arm in each["arms"])
        assert all(low <= high for _, low, high in each["gains"].values())
    assert set(led["gains"]) - set(full["gains"]) == {cost.BLOCKS}
    ours = [arm["forwards"] for arm in full["arms"] if arm["estimator"] == cost.OURS]
    assert ours == pytest.approx([2, 4], abs=0.01)
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"expected \[NAME=\]MODEL@TASK, got 'dlm'"):
        cost.asked("dlm", None, 3, 2)


def test_retention(script, tmp_path, monkeypatch, capsys):
    retention = script("retention")
    monkeypatch.setattr(retention, "WORK", tmp_path / "work")
    checkpoint(tmp_path / "dlm", "leader", 4)
    checkpoint(tmp_path / "ar", "causal")
    rows = [{"query": "abc", "choices": ["de", "fgh"], "gold": i % 2} for i in range(6)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "stories.json").write_text(json.dumps(["A b. C d. E f. G h. I j."]))
    entrants = [f"parent={tmp_path / 'ar'}", f"leader={tmp_path / 'dlm'}", f"leader-ar={tmp_path / 'dlm'}@exact"]
    words = [
        "--tasks",
        "piqa",
        "story_infill",
        "--tasks-dir",
        str(tmp_path),
        "--stories",
        str(tmp_path / "stories.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["retention.py", *entrants, *words, "--draws", "2", "--folder", str(tmp_path)])
    retention.main()
    found = results(tmp_path, "retention")
    assert "At chance for every model of this size: piqa" in capsys.readouterr().out
    assert set(found["kept"]) == {"leader", "leader-ar"}
    said = (tmp_path / "retention.md").read_text()
    assert "parent at story_infill: refused: an autoregressive model continues texts" in said
    assert "leader-ar at story_infill: refused: token by token" in said
    retention.main()  # what is measured is taken up
    assert results(tmp_path, "retention")["lines"] == found["lines"]
    with pytest.raises(ValueError, match="expected NAME=FOLDER, got 'dlm'"):
        retention.Entrant.of("dlm")


def test_reversal(script, tmp_path, monkeypatch):
    reversal = script("reversal")
    tiny = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}
    recipe = "".join(
        f"{name} = {tiny[name]}\n" if (name := line.split(" ")[0]) in tiny else f"{line}\n"
        for line in reversal.RECIPE.read_text().splitlines()
    )
    monkeypatch.setattr(reversal, "RECIPE", tmp_path / "tiny.toml")
    reversal.RECIPE.write_text(recipe)
    words = [
        "--pairs",
        "30",
        "--steps",
        "2",
        "--rows",
        "4",
        "--seeds",
        "2",
        "--arms",
        "parent",
        "masked",
        "leader-whole",
    ]
    reversal.main([*words, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    found = results(tmp_path, "reversal")
    assert set(found["runs"]) == {"parent", "masked", "leader-whole"}
    assert found["runs"]["parent"][0]["blank"]["reverse"] == [], "it does not look at what follows"
    assert found["pooled"]["parent"]["blank"]["ratio"] is None
    runs = {path.stem for path in (tmp_path / "work").rglob("0/*.json")}
    assert runs == {"parent", "masked", "leader", "leader-whole"}, "what an arm begins from is trained first"
    for name, (one, other) in found["runs"].items():
        assert one["arm"] == {**one["arm"], "whole": name == "leader-whole"}
        both = (1 if name == "parent" else 2) * 2 * 4 * 6
        assert one["positions"] == other["positions"] == both, "of the parent and of its adaptation"
        for side in ("question", "blank")[: 1 if name == "parent" else 2]:
            assert len(one[side]["forward"]) == len(one[side]["reverse"]) == one["pairs"] > 0
        pooled = found["pooled"][name]["question"]["forward"]
        assert pooled["low"] <= pooled["mean"] <= pooled["high"]
    kept = found["runs"]["masked"]
    reversal.main([*words, "--work", str(tmp_path / "work"), "--results", str(tmp_path)])
    assert results(tmp_path, "reversal")["runs"]["masked"] == kept, "what is trained is taken up"
    with pytest.raises(SystemExit, match="no run of this plan is finished"):
        reversal.main([*words, "--report", "--work", str(tmp_path / "other"), "--results", str(tmp_path)])


def test_a_ratio_of_directions(script):
    reversal = script("reversal")
    forward, reverse = reversal.np.array([1.0] * 8 + [0.0] * 2), reversal.np.array([1.0] * 4 + [0.0] * 6)
    found = reversal.ratio(forward, reverse)
    assert found.mean == 0.5
    assert found.low < 0.5 < found.high < 1
    assert reversal.ratio(reverse * 0, forward) is None
