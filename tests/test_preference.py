"""Preferences: the loss is DPO's on bounds, sharing masks calms it, and the chosen answer gains."""

import copy
import json
import math

import pytest
import torch
from models import tiny

from unveil.attention import Attention
from unveil.codecs.train import train_tokenizer
from unveil.data import compare
from unveil.nn.grow import bare
from unveil.objectives import Batch
from unveil.objectives.preference import Preference, halves, nats

LENGTH = 12


def batch(pairs: int = 4, seed: int = 0) -> Batch:
    """Prompts of four tokens, each with two answers side by side."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 14, (pairs, 2 * LENGTH), generator=generator)
    tokens[:, LENGTH : LENGTH + 4] = tokens[:, :4]
    answer = torch.ones_like(tokens, dtype=torch.bool)
    answer[:, :4] = answer[:, LENGTH : LENGTH + 4] = False
    return Batch(tokens, answer, ids=torch.arange(pairs), seed=seed)


def two(kind: str = "full", block: int | None = None, shifted: bool = False):
    """A model with its frozen start."""
    model = tiny(kind, block, shifted=shifted, sharp=4)
    if kind == "causal":
        bare(model).mask_id = model.mask_id = -1
    return model, copy.deepcopy(model).requires_grad_(False)


def nudged(model, size: float = 0.02, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * size * p.abs().mean())
    return model


def objective(reference, **options) -> Preference:
    found = Preference(**options)
    found.reference = reference
    return found


KINDS = [("full", None, False), ("full", None, True), ("block", 4, False), ("leader", 4, True), ("causal", None, False)]


@pytest.mark.parametrize(("kind", "block", "shifted"), KINDS)
def test_it_begins_at_log_two_and_is_the_formula(kind, block, shifted):
    model, reference = two(kind, block, shifted)
    loss = objective(reference, draws=2)(model, batch())
    assert loss.mean.item() == pytest.approx(math.log(2), abs=1e-6)
    assert float(loss.parts["margin"]) == pytest.approx(0, abs=1e-5)
    nudged(model)
    given = batch()
    with torch.no_grad():
        loss = objective(reference, beta=0.3, draws=2)(model, given)
    gain = []
    model.requires_grad_(False)
    for side in halves(given):
        turns = range(1) if kind == "causal" else range(2)
        gain.append(sum(nats(reference, side, t, 2) - nats(model, side, t, 2) for t in turns) / len(turns))
    margin = 0.3 * (gain[0] - gain[1])
    assert loss.total.item() == pytest.approx(float(torch.log1p(torch.exp(-margin)).sum()), rel=1e-5)
    assert int(loss.parts["right"]) == int((margin > 0).sum())
    assert int(loss.count) == 4


@pytest.mark.parametrize(("kind", "block", "shifted"), KINDS)
def test_a_step_against_the_gradient_raises_the_margin(kind, block, shifted):
    model, reference = two(kind, block, shifted)
    rate, given, goal = 1e-3, batch(), objective(reference, draws=4)
    goal(model, given).mean.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= rate * p.grad
        found = goal(model, given)
    assert float(found.parts["chosen"]) > float(found.parts["rejected"])
    assert float(found.parts["margin"]) > 0


@pytest.mark.parametrize(("kind", "block", "shifted"), KINDS[:4])
def test_shared_masks_calm_the_margin(kind, block, shifted):
    model, reference = two(kind, block, shifted)
    nudged(model)
    spread = {}
    for shared in (True, False):
        goal = objective(reference, draws=2, shared=shared)
        with torch.no_grad():
            margins = [float(goal(model, Batch(**{**vars(batch()), "seed": s})).parts["margin"]) for s in range(24)]
        spread[shared] = torch.tensor(margins).var().item()
    assert spread[True] < 0.3 * spread[False], spread


def test_no_split_of_the_rows_changes_the_loss():
    model, reference = two("leader", 4, True)
    nudged(model)
    goal, given = objective(reference), batch()
    whole = goal(model, given)
    parts = [
        goal(model, Batch(given.tokens[i : i + 1], given.answer[i : i + 1], ids=given.ids[i : i + 1])) for i in range(4)
    ]
    assert sum(int(part.count) for part in parts) == int(whole.count)
    torch.testing.assert_close(sum(part.total for part in parts), whole.total, rtol=1e-5, atol=1e-5)


def test_the_chosen_answer_wins_on_a_toy():
    model, reference = two("full")
    goal, given = objective(reference, beta=0.2, draws=2, keep=0.1), batch(8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(30):
        optimiser.zero_grad()
        goal(model, Batch(**{**vars(given), "seed": step})).mean.backward()
        optimiser.step()
    with torch.no_grad():
        found = goal(model, Batch(**{**vars(given), "seed": 99}))
    assert float(found.parts["right"]) == 8
    assert float(found.parts["chosen"]) > 0 > float(found.parts["rejected"])


def test_pairs_become_rows_of_both_answers(tmp_path):
    text = train_tokenizer(["add the two numbers", "which is larger"], 280)
    rows = [{"prompt": f"add {i}", "chosen": f" = {i}", "rejected": f" = {i}{i}!"} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = compare(str(tmp_path / "pairs.jsonl"), text, held_out=0.2)
    assert len(corpus.train) + len(corpus.held_out) == 20
    found = corpus.train.batch(3, 4, 16)
    assert found.tokens.shape == (4, 32)
    for row, answer in zip(found.tokens, found.answer, strict=True):
        left, right = text.decode(row[:16].tolist()), text.decode(row[16:].tolist())
        number = left.partition("add ")[2].partition(" ")[0]
        assert f"add {number} = {number}" in left
        assert f"add {number} = {number}{number}!" in right
        prompt = len([0, *text.encode(f"add {number}")])
        assert answer.tolist() == ([False] * prompt + [True] * (16 - prompt)) * 2
    assert corpus.held_out.windows(16).tokens.shape == (len(corpus.held_out), 16)
    longest = max(map(corpus.train.size, range(len(corpus.train))))
    assert len(corpus.train) > corpus.train.skipped(longest - 1) > 0
    for row, message in {
        '{"prompt": "a", "chosen": "b"}': "should have prompt, chosen and rejected as texts; its fields are chosen",
        '{"prompt": "a", "chosen": "b", "rejected": "b"}': "the chosen and the rejected answer are the same text",
    }.items():
        (tmp_path / "bad.jsonl").write_text(row)
        with pytest.raises(ValueError, match=message):
            compare(str(tmp_path / "bad.jsonl"), text)


def test_bad_calls():
    for options in ({"beta": 0}, {"draws": 0}, {"keep": -1}):
        with pytest.raises(ValueError, match="preference needs beta above 0"):
            Preference(**options)
    with pytest.raises(ValueError, match="compares with the frozen model"):
        Preference()(tiny(), batch())
    model, reference = two()
    with pytest.raises(ValueError, match="cannot hold two answers of equal length"):
        objective(reference)(model, Batch(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)))
    assert model.attention == Attention()
