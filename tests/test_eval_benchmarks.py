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
