"""AHD: the card's numbers, its loop written plainly, and what follows from its rules."""

from __future__ import annotations

import math

import pytest
import torch
from models import MASK, prompts, tiny

from unveil import spec
from unveil.canvas import Canvas
from unveil.context import Window
from unveil.decoders.ahd import Ahd
from unveil.prediction import Prediction
from unveil.sample import denoise, fill, generate

torch.set_num_threads(1)
PAST = [0.6, 0.7, 0.8, 0.85, 0.88]  # oldest first
SETTINGS = [("recompute", False), ("prefix", False), ("prefix", True)]


def blanks(width: int, block: int, end: int | None = None) -> Canvas:
    canvas = Canvas.filling(torch.full((1, width), MASK), MASK, torch.zeros(1, dtype=torch.long))
    canvas.window, canvas.block, canvas.budget, canvas.end = Window(0, width), Window(0, block), block, end
    return canvas


def told(canvas: Canvas, p: list[float], tokens: list[int] | None = None) -> Prediction:
    """Each position's token has the given probability, and token 1 the rest."""
    rows = torch.tensor(p, dtype=torch.float64)
    logits = torch.full((len(p), 16), -torch.inf, dtype=torch.float64)
    logits[:, 1] = (1 - rows).log()
    logits[torch.arange(len(p)), torch.tensor(tokens or [0] * len(p))] = rows.log()
    return Prediction(logits.float(), torch.arange(len(p)), canvas)


def divergence(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_the_unit_vector():
    decay = [math.exp(-0.5 * back) for back in range(1, 6)]
    weights = [each / sum(decay) for each in decay]
    assert [round(each, 3) for each in weights] == [0.429, 0.260, 0.158, 0.096, 0.058]
    canvas = blanks(2, 1)
    for form in ("window", "ema"):
        ahd = Ahd(form=form)
        ahd.begin(canvas)
        for p in PAST:
            assert math.isinf(float(ahd.drift(told(canvas, [0.5, p]))[0, 1]))
            ahd.past.add(told(canvas, [0.5, p]))
        drift = ahd.drift(told(canvas, [0.5, 0.9]))
        assert float(drift[0, 1]) == pytest.approx(0.0337, abs=5e-5)
        assert float(drift[0, 0]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_both_forms_are_their_formulas(decay):
    canvas, past = blanks(2, 1), [0.3, 0.4, *PAST]
    for form, back in (("window", 3), ("ema", len(past))):
        ahd = Ahd(form=form, history=4, decay=decay)
        ahd.begin(canvas)
        for p in past:
            ahd.past.add(told(canvas, [0.5, p]))
        weights = [math.exp(-decay * u) for u in range(1, back + 1)]
        sums = sum(w * divergence(0.9, p) for w, p in zip(weights, reversed(past), strict=False))
        assert float(ahd.drift(told(canvas, [0.5, 0.9]))[0, 1]) == pytest.approx(sums / sum(weights), abs=1e-5)


def test_the_logits_are_gone_through_once_however_long_the_window(monkeypatch):
    canvas, rows = blanks(2, 1), []
    ahd = Ahd(history=6)
    ahd.begin(canvas)
    for p in PAST:
        ahd.past.add(told(canvas, [0.5, p]))
    plain = Prediction.logp
    monkeypatch.setattr(Prediction, "logp", lambda seen, here: rows.append(here) or plain(seen, here))
    assert ahd.drift(told(canvas, [0.5, 0.9])).isfinite().all()
    assert len(rows) == 1


def reference(model, prompt, length: int, block: int, ahd: Ahd) -> list[list[int]]:
    """The card's loop for one row, position by position; the rows after every step."""
    x = torch.cat([prompt, torch.full((length,), MASK)])
    first, made = len(prompt), []
    past: dict[int, list[torch.Tensor]] = {i: [] for i in range(first, first + length)}
    weights = [math.exp(-ahd.decay * u) for u in range(1, ahd.history)]
    for start in range(first, first + length, block):
        here = range(start, min(start + block, first + length))
        while any(int(x[i]) == MASK for i in here):
            logits = model(x[None])[0].double()
            logits[:, MASK] = -torch.inf
            p = logits.softmax(-1)
            open_ = [i for i in here if int(x[i]) == MASK]
            chosen = {i for i in open_ if float(p[i].max()) >= ahd.tau} | {max(open_, key=lambda i: float(p[i].max()))}
            later = [i for i in range(here.stop, first + length) if int(x[i]) == MASK]
            for i in later:
                if len(past[i]) >= ahd.history - 1:
                    kl = [
                        float((p[i] * (p[i].clamp_min(1e-12).log() - q.clamp_min(1e-12).log())).sum())
                        for q in reversed(past[i][1 - ahd.history :])
                    ]
                    if sum(w * d for w, d in zip(weights, kl, strict=True)) / sum(weights) < ahd.epsilon:
                        chosen.add(i)
            for i in open_ + later:
                past[i].append(p[i])
            for i in chosen:
                x[i] = int(p[i].argmax())
            made.append(x.tolist())
    return made


def test_it_is_the_loop_of_the_card():
    early = 0
    for seed in range(3):
        model, prompt = tiny(seed=seed, sharp=8.0), prompts(1, 5, seed)[0]
        ahd = Ahd(tau=0.6, history=3, epsilon=0.3)
        with torch.inference_mode():
            expected = reference(model, prompt, 16, 4, ahd)
        canvas = Canvas.answering([prompt], 16, MASK)
        rows = []
        for step in denoise(model, canvas, ahd, block=4):
            rows.append(step.rows()[0].tolist())
            early += bool((step.tokens[0, step.block.stop :] != MASK).any())
        assert rows == expected
    assert early, "nothing was written beyond a block: the test proves nothing"


@pytest.mark.parametrize("cache", SETTINGS, ids=str)
@pytest.mark.parametrize("more", ["", ", temperature=0.7", ", form='ema'"])
def test_without_epsilon_it_is_threshold(cache, more):
    model, given = tiny(shifted=cache[1], sharp=8.0), [prompts(1, n, n)[0] for n in (5, 8)]
    plain = f"threshold(tau=0.6{more})" if "form" not in more else "threshold(tau=0.6)"
    made = generate(model, given, 16, f"ahd(tau=0.6, epsilon=0, history=2{more})", cache=cache[0], block=4, seed=2)
    assert torch.equal(made, generate(model, given, 16, plain, cache=cache[0], block=4, seed=2))
    whole = generate(model, given, 16, f"ahd(tau=0.6{more})", cache=cache[0], seed=2)  # nothing is beyond one block
    assert torch.equal(whole, generate(model, given, 16, plain, cache=cache[0], seed=2))


@pytest.mark.parametrize("cache", SETTINGS, ids=str)
@pytest.mark.parametrize("form", ["form='window'", "form='ema'", "guard_end=True", "temperature=0.5"])
def test_rows_are_written_as_alone_and_what_is_given_stays(cache, form):
    model = tiny(shifted=cache[1], sharp=8.0)
    model.eos_id = 3
    rows = [prompts(1, n, n)[0] for n in (11, 15, 19)]
    for n, row in enumerate(rows):
        row[3 + n :] = MASK
        row[8 + n] = 3
    decoder = f"ahd(tau=0.6, history=3, epsilon=0.5, {form})"
    batch = fill(model, rows, decoder, cache=cache[0], block=4, seed=4)
    fewer = 0
    for n, row in enumerate(rows):
        assert torch.equal(batch[n][row != MASK], row[row != MASK])
        assert not bool((batch[n] == MASK).any())
        canvas = Canvas.filling([row], MASK, torch.tensor([4 + n]))
        for _ in denoise(model, canvas, decoder, cache=cache[0], block=4):
            pass
        assert torch.equal(batch[n], canvas.rows()[0])
        fewer += int((row == MASK).sum()) - canvas.forwards
    assert fewer > 0


def stable(canvas: Canvas, ahd: Ahd, p: list[float], tokens: list[int]) -> list[list[int]]:
    """What is written after enough equal predictions."""
    ahd.begin(canvas)
    for _ in range(ahd.history - 1):
        ahd.past.add(told(canvas, p, tokens))
    return ahd.write(canvas, told(canvas, p, tokens)).tolist()


def test_the_guard_lets_only_an_unbroken_end_through():
    m, e = MASK, 9
    p = [0.95, 0.6, 0.6, 0.6, 0.6, 0.6]
    assert stable(blanks(6, 2), Ahd(), p, [e, 0, e, 2, e, e]) == [[e, m, e, 2, e, e]]
    guard = Ahd(guard_end=True)
    assert stable(blanks(6, 2, e), guard, p, [e, 0, e, 2, e, e]) == [[e, m, m, 2, e, e]]
    assert stable(blanks(6, 2, e), guard, p, [3, 0, e, 2, e, e]) == [[3, m, m, 2, m, m]]  # no sure end in the block
    canvas = blanks(6, 2, e)
    canvas.tokens[0, 0] = e  # written there
    assert stable(canvas, guard, p, [e, 0, e, 2, e, e]) == [[e, 0, m, 2, e, e]]


def test_a_flat_distribution_that_does_not_move_needs_the_least():
    p, tokens = [0.95, 0.6, 0.55, 0.8], [2, 3, 4, 5]
    assert stable(blanks(4, 1), Ahd(), p, tokens) == [[2, 3, 4, 5]]
    assert stable(blanks(4, 1), Ahd(least=0.58), p, tokens) == [[2, 3, MASK, 5]]
    assert stable(blanks(4, 1), Ahd(epsilon=0), p, tokens) == [[2, MASK, MASK, MASK]]


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ValueError, match="the ahd decoder reads predictions beyond the block, and the dual cache"):
        generate(tiny(), prompts(), 8, "ahd", cache="dual", block=4)
    for decoder in ("ahd(form='ema')", "prophet(inner='ahd')"):
        with pytest.raises(ValueError, match="stand still.* features cache does not make each.*use recompute, prefix"):
            generate(tiny(), prompts(), 8, decoder, cache="features", block=4)
    for cache in ("causal", "recompute"):
        with pytest.raises(ValueError, match="beyond the block.*leader attention makes none"):
            generate(tiny("leader", 4, shifted=True), prompts(), 8, "ahd", cache=cache, block=4)
    with pytest.raises(ValueError, match="no token for it"):
        generate(tiny(), prompts(), 8, "ahd(guard_end=True)", block=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("history=1", "history is 1"),
        ("epsilon=-1", "epsilon is -1"),
        ("decay=-1", "decay is -1"),
        ("least=2", "least is 2"),
        ("form='cheap'", "no form of history called 'cheap'; there are: window, ema"),
    ],
)
def test_bad_options_are_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        spec.build("decoders", f"ahd({options})")
