"""Confidence extrapolation: the filter against known numbers, and what follows from it on a canvas."""

from __future__ import annotations

import math

import pytest
import torch
from models import MASK

from unveil.canvas import Canvas
from unveil.context import Window
from unveil.nn.extrapolation import Extrapolation, Noise, Trend, log_odds
from unveil.prediction import Prediction

SEEN = torch.tensor([0.55, 0.62, 0.70, 0.77, 0.83], dtype=torch.float64)


def followed(confidence: torch.Tensor, noise: Noise) -> Trend:
    reading = log_odds(confidence)
    trend = Trend.begin(reading[..., 0])
    for t in range(1, reading.shape[-1]):
        trend = trend.ahead(noise).read(reading[..., t], noise)
    return trend


def test_the_filter_gives_known_numbers():
    trend = followed(SEEN, Noise())
    expected = [1.547, 0.286, 0.0697, 0.0262, 0.0456]
    torch.testing.assert_close(trend.columns, torch.tensor(expected, dtype=torch.float64), atol=6e-4, rtol=0)
    said = []
    for _ in range(4):
        trend = trend.ahead(Noise())
        said.append([float(trend.level), float(trend.spread.sqrt()), float(trend.reach(math.log(9)))])
    expected = [[1.834, 0.433, 0.20], [2.092, 0.628, 0.43], [2.324, 0.836, 0.56], [2.532, 1.053, 0.625]]
    torch.testing.assert_close(torch.tensor(said), torch.tensor(expected), atol=1e-3, rtol=1e-2)


def test_the_filter_equals_matrices_written_plainly():
    torch.manual_seed(0)
    confidence, noise = torch.rand(3, 7, dtype=torch.float64), Noise(0.3, 0.05, 0.2)
    trend = followed(confidence, noise)
    step = torch.tensor([[1, 1], [0, 0.9]], dtype=torch.float64)
    for row in range(3):
        reading = log_odds(confidence[row])
        state, p = torch.stack([reading[0], reading[0] * 0]), torch.eye(2, dtype=torch.float64)
        for z in reading[1:]:
            state, p = step @ state, step @ p @ step.T + torch.diag(torch.tensor([0.3, 0.05], dtype=torch.float64))
            gain = p[:, 0] / (p[0, 0] + 0.2)
            state, p = state + gain * (z - state[0]), p - torch.outer(gain, p[0])
        plain = torch.stack([*state, p[0, 0], p[0, 1], p[1, 1]])
        torch.testing.assert_close(trend.columns[row], plain)


def blanks(count: int, block: int | None = None) -> Canvas:
    canvas = Canvas.filling(torch.full((1, count), MASK), MASK, torch.zeros(1, dtype=torch.long))
    canvas.window = canvas.block = Window(0, block or count)
    return canvas


def said(canvas: Canvas, confidence: list[float], token: int | list[int] = 0) -> Prediction:
    """A prediction of every position: `token` has the given confidence, and another one all the rest."""
    c = torch.tensor(confidence, dtype=torch.float64)
    tokens = torch.as_tensor(token).expand(len(c))
    logits = torch.full((len(c), 16), -torch.inf, dtype=torch.float64)
    logits[torch.arange(len(c)), tokens] = c.log()
    logits[torch.arange(len(c)), (tokens + 1) % 4] = (1 - c).log()
    return Prediction(logits, torch.arange(len(c)), canvas)


def judged(rule: Extrapolation, series: list[list[float]], tokens: list | None = None) -> tuple[list, list]:
    """What is said of a block of blanks after the last of several predictions."""
    canvas = blanks(len(series[0]))
    rule.enter(canvas)
    early = late = torch.zeros(0)
    for t, confidence in enumerate(series):
        early, late = rule.judge(canvas, said(canvas, confidence, tokens[t] if tokens else 0))
    return early[0].tolist(), late[0].tolist()


def test_what_rises_is_written_ahead_where_the_left_is_written():
    rise = [[c, c] for c in (0.55, 0.70, 0.82, 0.88)]
    assert judged(Extrapolation(), rise) == ([True, False], [False, False])  # nothing left of the second is written
    assert judged(Extrapolation(coverage=0), rise) == ([True, True], [False, False])
    assert judged(Extrapolation(coverage=1.1), rise) == ([False, False], [False, False])
    assert judged(Extrapolation(horizon=0), rise) == ([False, False], [False, False])
    assert judged(Extrapolation(kappa=20), rise) == ([False, False], [False, False])
    assert judged(Extrapolation(), rise[:1]) == ([False, False], [False, False])
    assert judged(Extrapolation(), rise[::-1])[0] == [False, False]


def test_a_new_token_begins_a_new_trend():
    rise = [[c] for c in (0.55, 0.70, 0.82, 0.88)]
    bold = Extrapolation(kappa=0)
    assert judged(bold, rise, [0, 0, 0, 0])[0] == [True]
    assert judged(bold, rise, [0, 0, 0, 3])[0] == [False]
    assert judged(bold, rise, [3, 3, 0, 0])[0] == [True]


def test_what_turns_twice_or_declines_had_better_wait():
    turns, swift = [[c] for c in (0.6, 0.8, 0.6, 0.8)], Extrapolation(tau=0.5)  # above tau nothing declines
    assert judged(swift, turns)[1] == [True]
    assert judged(swift, turns[:3])[1] == [False]  # one turn
    assert judged(Extrapolation(tau=0.5, veto=False), turns)[1] == [False]
    assert judged(swift, turns, [0, 2, 0, 2])[1] == [True]  # two tokens in turn
    fall = [[c] for c in (0.8, 0.7, 0.6)]
    assert judged(Extrapolation(), fall)[1] == [True]
    assert judged(swift, fall)[1] == [False]
    calm = [[c] for c in (0.6, 0.8, 0.6, 0.7, 0.75, 0.8, 0.84)]
    assert judged(Extrapolation(), calm)[1] == [False]  # the turns lie too far back


def test_the_horizon_grows_with_what_is_written_to_the_left():
    canvas = blanks(11)
    canvas.tokens[0, :10] = 3
    rule = Extrapolation()
    for left, steps in [(10, 3), (9, 2), (8, 1), (7, 1), (6, 0), (0, 0)]:
        canvas.tokens[0, left:] = MASK
        assert int(rule.steps(canvas)[10]) == steps, left
    assert int(rule.steps(canvas)[0]) == 3
    assert rule.steps(blanks(3)).tolist() == [3, 0, 0]


def test_a_refreshed_cache_doubles_the_variances():
    canvas, rule = blanks(8, block=3), Extrapolation()
    rule.enter(canvas)
    widths = [(8, False), (3, False), (3, False), (8, True), (8, False)]
    for width, doubled in widths:
        rule.kept[:] = 1.0
        canvas.window = Window(0, width)
        rule.loosen(canvas)
        assert rule.kept[0].tolist() == ([1, 1, 2, 2, 2] if doubled else [1] * 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"kappa": -1}, "kappa is -1"), ({"coverage": -0.1}, "coverage is -0.1"), ({"horizon": 1.5}, "horizon is 1.5")],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        Extrapolation(**options)


def test_a_tau_of_one_or_more_is_never_reached():
    rise = [[c] for c in (0.55, 0.70, 0.82, 0.88)]
    assert judged(Extrapolation(tau=1.1), rise)[0] == [False]
    assert judged(Extrapolation(tau=1), rise)[0] == [False]
    assert judged(Extrapolation(tau=0), rise)[0] == [True]
