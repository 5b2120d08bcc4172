"""A checkpoint whose config contradicts its weights is found out."""

from __future__ import annotations

import json

import pytest
from commands import command
from models import tiny

from unveil import hub
from unveil.evaluate.check import TEXTS, Check, check

MODEL = "stdlib-dlm"


@pytest.fixture
def flipped(tmp_path):
    """The embedded model saved as one that reads token i at i."""
    model, text = hub.load(MODEL, raw=True)
    return str(hub.save(model, tmp_path / "flipped", text))


def test_the_shift_is_seen_in_the_weights(flipped, monkeypatch, capsys):
    right = check(*hub.load(MODEL))
    assert right.agrees
    assert right.before < right.here - 1
    wrong = check(*hub.load(flipped))
    assert (wrong.shifted, wrong.agrees, wrong.seen) == (False, False, True)
    assert wrong.before == pytest.approx(right.before)
    code, out, err = command(monkeypatch, capsys, "info", MODEL, "--check")
    assert (code, err) == (0, "")
    assert "token i at i - 1, as config.json says" in out
    code, out, err = command(monkeypatch, capsys, "info", flipped, "--check", "--json")
    assert code == 2
    assert '"shift": true' in err
    assert json.loads(out.splitlines()[-1])["check"]["agrees"] is False
    assert command(monkeypatch, capsys, "info", flipped)[0] == 0, "without --check no weights are read"


def test_what_the_weights_do_not_show():
    assert Check(True, 3.0, 2.99, 0.1, 8.0).agrees is None
    assert Check(True, 9.0, 7.9, 0.1, 8.0).agrees is None
    assert Check(True, 9.0, 4.0, 0.1, 8.0).agrees
    assert Check(False, 4.0, 9.0, 0.1, 8.0).agrees
    assert Check(True, 4.0, 9.0, 0.1, 8.0).agrees is False


@pytest.mark.parametrize(("kind", "block"), [("full", None), ("block", 4), ("leader", 4)])
def test_random_weights_show_nothing(kind, block):
    class Letters:
        start_id = 0

        def encode(self, text):
            return [1 + ord(letter) % 14 for letter in text]

    assert len(TEXTS) == 5
    assert check(tiny(kind, block, sharp=1.0), Letters()).agrees is None


def test_a_parent_has_no_shift_to_check():
    with pytest.raises(ValueError, match="always reads token i at i - 1"):
        check(*hub.load("stdlib-ar"))
