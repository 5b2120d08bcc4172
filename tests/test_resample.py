"""Choosing positions by what they drew tilts the text; drawing again does not. Worked by hand on two tokens."""

from __future__ import annotations

import pytest
import torch
from models import MASK, prompts, tiny

from unveil import spec
from unveil.canvas import Canvas
from unveil.context import Window
from unveil.prediction import Prediction
from unveil.sample import generate

ROWS, RARE = 40_000, 0.1


def first_commits(decoder: str, positions: int) -> float:
    """The share of rows whose first committed token is the rare one of p = (0.9, 0.1), at that many equal positions."""
    canvas = Canvas.filling(torch.full((ROWS, positions), MASK), MASK, torch.arange(ROWS))
    canvas.window = canvas.block = Window(0, positions)
    canvas.budget = positions
    logits = torch.full((ROWS * positions, MASK + 1), -torch.inf)
    logits[:, 0], logits[:, 1] = torch.tensor([1 - RARE, RARE]).log()
    written = spec.build("decoders", decoder).write(canvas, Prediction(logits, torch.arange(len(logits)), canvas))
    assert ((written != MASK).sum(1) == 1).all()
    return float((written == 1).any(1).float().mean())


@pytest.mark.parametrize("positions", [1, 2, 3])
def test_a_rare_token_survives_only_where_every_position_drew_it(positions):
    expected = RARE**positions
    error = (expected * (1 - expected) / ROWS) ** 0.5
    for decoder in ("confidence(temperature=1)", "threshold(tau=0.95, temperature=1)"):
        assert abs(first_commits(decoder, positions) - expected) < 4 * error, decoder


@pytest.mark.parametrize(
    "decoder",
    [
        "confidence(temperature=1, resample=True)",
        "threshold(tau=0.95, temperature=1, resample=True)",
        "entropy(temperature=1)",
        "first_hitting",
    ],
)
def test_what_is_drawn_after_the_choice_has_the_probabilities_of_the_model(decoder):
    error = (RARE * (1 - RARE) / ROWS) ** 0.5
    assert abs(first_commits(decoder, 3) - RARE) < 4 * error


@pytest.mark.parametrize("name", ["confidence", "threshold"])
def test_without_temperature_there_is_nothing_to_draw_again(name):
    model, rows = tiny(), prompts()
    plain, again = (generate(model, rows, 8, f"{name}{more}", seed=3) for more in ("", "(resample=True)"))
    assert torch.equal(plain, again)
