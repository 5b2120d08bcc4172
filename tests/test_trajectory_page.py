"""The page and the pictures of trajectories: what they say is what was recorded, also for whoever points at it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from models import MASK, tiny
from toy import letters

pytest.importorskip("sklearn", reason="scikit-learn is not there to fit probes: pip install 'unveil[eval]'")
from unveil.evaluate.trajectory import recording, study
from unveil.evaluate.trajectory.labels import Labels
from unveil.evaluate.trajectory.sequences import Sequences
from unveil.watch.scenes import scenes
from unveil.watch.trajectory_page import COLUMNS, line, page

KINDS = {"low": "few", "high": "few", "end": "last"}
LABELS = Labels("toy", "a toy", KINDS, lambda text: [], whole=False, space="end", early="few", late="last")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Figures and scenes of a study on random numbers."""
    torch.manual_seed(0)
    top, numbers = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    tokens = numbers.integers(0, MASK - 1, (24, 12)).astype(np.int32)
    maskable = np.arange(12)[None] > np.zeros((24, 1))
    some = Sequences(tokens, (tokens % 3).astype(np.int16), maskable, np.arange(24, dtype=np.int32))
    options = {"masks": (0.5,), "orders": ("confidence",), "seeds": 2, "sequences": 12, "length": 12, "steps": 6}
    plan = study.Plan(**options, probed=120, probe_steps=2, types=4, perturbed=3, perturb_steps=3)
    study.observe(plan, tiny(sharp=6.0), some, top, lambda said: None)
    cells = list(study.measured(plan, LABELS, top, lambda said: None))
    about = {"model": "</script>", "steps": 6, "attention": "full", "labels": "toy", "labels_are": LABELS.about}
    (cell,) = study.cells(plan)
    return {**about, "cells": cells}, scenes(cell.name, recording.load(cell.file(top, 0)), LABELS, letters())


def test_a_page_holds_everything(found):
    about, seen = found
    text = page(about, seen)
    held = json.loads(re.findall(r'type="application/json">(.*?)</script>', text, re.S)[0])
    assert held[0]["truth"] == [seen[0].pieces[place] for place in seen[0].places]
    assert "How &lt;/script&gt; fills" in text
    for claim in about["cells"][0]["claims"]:
        assert claim["claim"] in text
    assert len(line(about["cells"][0])) == len(COLUMNS)
    assert "src=" not in text
    assert "href=" not in text


def test_pictures(found):
    pytest.importorskip("matplotlib", reason="matplotlib is not there to draw: pip install 'unveil[plot]'")
    from unveil.watch.trajectory_plots import pictures, plain

    drawn = pictures(*found)
    assert list(drawn) == ["trajectory.png", "map.png"]
    assert all(content.startswith(b"\x89PNG") for content in drawn.values())
    assert [plain(word) for word in ("\n", " ", "a$", "\x11", "\U000f0000")] == ["\u21b5", "\u2423", r"a\$", "?", "?"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pointing_tells_what_was_recorded(found, tmp_path, scheme):
    pytest.importorskip("playwright.sync_api", reason="playwright is not there to drive a browser")
    from browsing import chromium

    about, seen = found
    scene = seen[0]
    (tmp_path / "page.html").write_text(page(about, seen), encoding="utf-8")
    with chromium() as browser:
        shown, wrong = browser.new_context(color_scheme=scheme, offline=True).new_page(), []
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.goto((tmp_path / "page.html").as_uri())
        shown.focus("#map")
        for key in ["ArrowUp"] * 6 + ["ArrowRight"] * 2 + ["ArrowDown"] * 4:
            shown.keyboard.press(key)
        said, words = shown.inner_text("#said"), shown.inner_text("#words")
        shown.select_option("#colour", "right")
        shown.select_option("#scene", "1")
        assert "Nothing is pointed at" in shown.inner_text("#said")
        box = shown.locator("#map").bounding_box()
        shown.mouse.move(box["x"] + 60, box["y"] + 40)
        assert "Step" in shown.inner_text("#said")
    assert wrong == []
    word = scene.words[scene.predicted[2][4]]
    assert f'Step 4, position {scene.places[2]} ({scene.kinds[2]}): "{word}"' in said
    assert f"probability {scene.probability[2][4]:.3f}" in said
    assert f"Committed at step {scene.committed[2]}, written at step {scene.revealed[2]}." in said
    assert words.count("\u2591") == sum(step >= 4 for step in scene.revealed)
