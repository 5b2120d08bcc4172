"""Saber: against its published steps written plainly, and what follows from its rules."""

from __future__ import annotations

import math

import pytest
import torch
from models import MASK, prompts, tiny

from unveil import spec
from unveil.canvas import Canvas
from unveil.context import Window
from unveil.decoders.saber import SCORES, Saber
from unveil.prediction import Prediction
from unveil.sample import denoise, fill, generate

torch.set_num_threads(1)
SETTINGS = [
    ("full", False, "recompute"),
    ("full", True, "prefix"),
    ("full", False, "dual"),
    ("block", False, "causal"),
    ("leader", True, "causal"),
    ("leader", True, "recompute"),
]


def reference(model, prompt, length: int, n: int, mu: float, remask: str) -> list[list[int]]:
    """The published loop for one row and one block, position by position; the rows after every step."""
    x = torch.cat([prompt, torch.full((length,), MASK)])
    start, made = len(prompt), []
    here = range(start, start + length)
    before, commits = dict.fromkeys(here, 0.0), {}
    while any(int(x[i]) == MASK for i in here):
        logits = model(x[None])[0].float()
        logits[:, MASK] = -torch.inf
        p = logits.softmax(-1)
        best = {i: int(p[i].argmax()) for i in here}
        c = {i: float(p[i, best[i]]) for i in here}
        level = sum(commits.values()) / len(commits) if commits else 1.0
        blanks = [i for i in here if int(x[i]) == MASK]
        chosen = [i for i in blanks if c[i] > level]
        if len(chosen) < n:
            chosen = sorted(blanks, key=lambda i: -c[i])[:n]
        for i in chosen:
            x[i] = best[i]
            if remask != "low_prob" or i not in commits:
                commits[i] = c[i]
        standing = {i: float(p[i, x[i]]) for i in here if int(x[i]) != MASK}
        now = c if remask == "drop_argmax" else {i: standing[i] if i in standing else c[i] for i in here}
        score = now if remask == "low_prob" else {i: now[i] - before[i] for i in here}
        before = now
        if any(int(x[i]) == MASK for i in here):
            back = min(max(n // 2, math.ceil(len(chosen) / mu)), len(chosen) - 1)
            for i in sorted(standing, key=lambda i: score[i])[:back]:
                x[i] = MASK
        made.append(x.tolist())
    return made


@pytest.mark.parametrize("remask", SCORES)
@pytest.mark.parametrize(("n", "mu"), [(2, 8.0), (2, 2.0), (3, 2.0), (1, 8.0)])
def test_it_is_the_published_loop(remask, n, mu):
    taken = 0
    for seed in range(3):
        model, prompt = tiny(seed=seed, sharp=12.0), prompts(1, 5, seed)[0]
        with torch.inference_mode():
            expected = reference(model, prompt, 10, n, mu, remask)
        canvas = Canvas.answering([prompt], 10, MASK)
        steps = denoise(model, canvas, Saber(n, mu, remask))
        rows = [step.rows()[0].tolist() for step in steps]
        assert rows == expected
        pairs = zip(sum(rows[:-1], []), sum(rows[1:], []), strict=True)
        taken += sum(was != MASK and now == MASK for was, now in pairs)
    assert taken or n == 1, "nothing was ever taken back: the test proves nothing"


def told(p: list[float]) -> tuple[Canvas, Prediction]:
    """A canvas of blanks on which token 0 has the given probabilities."""
    canvas = Canvas.filling(torch.full((1, len(p)), MASK), MASK, torch.zeros(1, dtype=torch.long))
    canvas.window = canvas.block = Window(0, len(p))
    canvas.budget = len(p)
    return canvas, again(canvas, p)


def again(canvas: Canvas, p: list[float]) -> Prediction:
    rows = torch.tensor(p, dtype=torch.float64)
    logits = torch.full((len(p), 16), -torch.inf, dtype=torch.float64)
    logits[:, 0], logits[:, 1] = rows.log(), (1 - rows).log()
    return Prediction(logits.float(), torch.arange(len(p)), canvas)


def test_the_level_is_the_mean_of_the_probabilities_at_commit():
    canvas, seen = told([0.95, 0.9, 0.8, 0.7, 0.6])
    saber = Saber(n=2, take_back=False)
    saber.begin(canvas)
    canvas.write(saber.write(canvas, seen))
    assert (canvas.tokens == MASK).tolist() == [[False, False, True, True, True]]
    assert float(saber.bar()) == pytest.approx(0.925)
    canvas.write(saber.write(canvas, again(canvas, [0.5, 0.5, 0.93, 0.94, 0.95])))
    assert not bool((canvas.tokens == MASK).any())  # three are above it, more than n


def test_the_last_blank_is_one_commit_and_none_is_taken_back():
    canvas, seen = told([0.95, 0.9, 0.8])
    saber = Saber()
    saber.begin(canvas)
    canvas.tokens[0, :2] = 5
    canvas.write(saber.write(canvas, seen))
    assert canvas.tokens.tolist() == [[5, 5, 0]]


def test_what_has_fallen_most_is_taken_back():
    canvas, seen = told([0.95, 0.94, 0.6, 0.6, 0.6, 0.6])
    saber = Saber(n=3)
    saber.begin(canvas)
    canvas.write(saber.write(canvas, seen))  # three commits, and the one that rose least from 0 goes again
    assert (canvas.tokens == MASK).tolist() == [[False, False, True, True, True, True]]
    # the first fell by 0.4, the second by 0.04, and what was just committed rose
    canvas.write(saber.write(canvas, again(canvas, [0.55, 0.9, 0.8, 0.7, 0.61, 0.6])))
    assert (canvas.tokens == MASK).tolist() == [[True, False, False, False, False, True]]


@pytest.mark.parametrize("kind", SETTINGS, ids=str)
@pytest.mark.parametrize("remask", SCORES)
def test_rows_are_written_as_alone_and_what_is_given_stays(kind, remask):
    model = tiny(kind[0], 4, shifted=kind[1], sharp=12.0)
    rows = [prompts(1, n, n)[0] for n in (9, 12, 15)]
    for n, row in enumerate(rows):
        row[3 + n :] = MASK
        row[7 + n] = 3
    decoder = f"saber(mu=2, n=3, remask='{remask}', temperature=0.5)"
    kwargs = {"cache": kind[2], "block": 4, "attention": model.attention}
    batch = fill(model, rows, decoder, seed=4, **kwargs)
    for n, row in enumerate(rows):
        assert torch.equal(batch[n][row != MASK], row[row != MASK])
        assert not bool((batch[n] == MASK).any())
        assert torch.equal(batch[n], fill(model, [row], decoder, seed=4 + n, **kwargs)[0])


@pytest.mark.parametrize("kind", SETTINGS, ids=str)
def test_every_step_gains_a_token_and_leaders_stay(kind):
    model, given = tiny(kind[0], 4, shifted=kind[1], sharp=12.0), prompts(3, 6)
    canvas = Canvas.answering(given, 12, MASK)
    left, taken = torch.full((3,), 12), torch.zeros(3, dtype=torch.long)
    for step in denoise(model, canvas, "saber(mu=2)", cache=kind[2], block=4):
        now = (step.tokens == MASK).sum(1)
        assert torch.equal(now < left, step.taken > taken)  # each row that made use of the prediction
        taken = step.taken.clone()
        if kind[0] == "leader":
            assert not bool((step.block.take(step.tokens)[:, 0] == MASK).any())
        left = now
    assert int(canvas.taken.max()) <= 12
    assert canvas.forwards <= 16 if kind[0] == "block" else canvas.forwards <= 12


def test_switched_off_it_is_n_a_step_by_confidence():
    model, given = tiny(), prompts()
    for n in (1, 2, 3):
        made = generate(model, given, 12, f"saber(n={n}, take_back=False, level=2)", block=6)
        assert torch.equal(made, generate(model, given, 12, "confidence", block=6, steps=6 // n))
    made = generate(model, given, 12, "saber(n=1, take_back=False, level=0.4)")
    assert torch.equal(made, generate(model, given, 12, "threshold(tau=0.4)"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("n=0", "n is 0"),
        ("mu=0.5", "mu is 0.5"),
        ("remask='worst'", "no remask called 'worst'; there are: drop_argmax"),
    ],
)
def test_bad_options_are_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        spec.build("decoders", f"saber({options})")
