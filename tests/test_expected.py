"""Draws about what is expected: the mean is the bound to the last digit, and the noise below that of plain draws."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import pytest
import torch
import torch.nn.functional as F
from models import MASK, tiny
from torch import Tensor

from unveil import rules
from unveil.context import Context, Rule
from unveil.denoiser import Denoiser
from unveil.evaluate import conditional as scoring
from unveil.evaluate import masks
from unveil.evaluate.conditional import Pair, conditional
from unveil.evaluate.expected import Expected
from unveil.evaluate.likelihood import score
from unveil.objectives import Batch

PAIR = Pair([1, 2, 3, 4, 5], [6, 7, 8, 9])
LAYOUTS = [("full", None, False), ("full", None, True), ("leader", 4, True), ("block", 4, False)]


def over_sets(model: Denoiser, row: list[int], places: list[int], rule: Rule | None) -> float:
    """The sum over k of the mean surprise at k hidden tokens of `places`, over all sets."""
    total = 0.0
    for k in range(1, len(places) + 1):
        sets = list(combinations(places, k))
        for some in sets:
            noisy = torch.tensor([[MASK if i in some else token for i, token in enumerate(row)]])
            with torch.no_grad():
                logits = model(noisy, Context(rule=rule))[0, list(some), :MASK]
            total += float(F.cross_entropy(logits.double(), torch.tensor([row[i] for i in some]))) / len(sets)
    return total


def written_out(model: Denoiser, pair: Pair, size: int | None, lead: bool) -> float:
    """The bound, block after block: what is before a block is clean, and what is behind it is not there."""
    row, first = [*pair.context, *pair.continuation], len(pair.context)
    if size is None:
        return over_sets(model, row, list(range(first, len(row))), None)
    total = 0.0
    for start in range(0, len(row), size):
        end = min(start + size, len(row))
        places = [i for i in range(max(start, first), end) if not (lead and i == start)]
        if lead and start >= first:
            with torch.no_grad():
                logits = model(torch.tensor([row]), Context(rule=rules.causal))[0, start, :MASK]
            total += float(F.cross_entropy(logits[None].double(), torch.tensor([row[start]])))
        rule = rules.leading(start, size) if lead else rules.not_later(size)
        total += over_sets(model, row[:end], places, rule)
    return total


class Everything:
    """All orders of `count` tokens, each with offsets from every stretch in which no level changes, and its length."""

    def __init__(self, count: int, draws: int):
        edges = {0.0, 1.0}
        for turn in range(draws):
            low, high = (turn / draws) ** masks.POWER, ((turn + 1) / draws) ** masks.POWER
            for top in range(1, count):
                for step in range(top + 1):
                    at = (step / top - low) / (high - low)
                    edges |= {at, 1 - at} if 0 < at < 1 else set()
        cuts = sorted(edges)
        self.orders = list(permutations(range(count)))
        self.offsets = torch.tensor([(a + b) / 2 for a, b in zip(cuts, cuts[1:], strict=False)]).double()
        self.share = torch.tensor([b - a for a, b in zip(cuts, cuts[1:], strict=False)]).double()
        self.keys = range(len(self.orders) * len(self.offsets))
        self.weight = self.share.repeat(len(self.orders)) / len(self.orders)

    def rounds(self, targets: Tensor, parts: Tensor, starts: Tensor, seed: int, keys: Tensor, draws: int):
        order = torch.tensor(self.orders)[keys // len(self.offsets)].double() / 10
        at = (torch.arange(targets.shape[1])[None] - starts[:, None]) % order.shape[1]
        offset = self.offsets[keys % len(self.offsets)][:, None].expand(targets.shape)
        return masks.around(targets, parts, order.gather(1, at), offset, draws)


@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize(("kind", "block", "shifted"), LAYOUTS)
def test_the_mean_over_all_that_may_be_drawn_is_the_bound(monkeypatch, kind, block, shifted, draws):
    model, every = tiny(kind, block, shifted=shifted, sharp=6.0), Everything(4, draws)
    monkeypatch.setattr(scoring.masks, "rounds", every.rounds)
    found = conditional(model, [Pair(PAIR.context, PAIR.continuation, key) for key in every.keys], draws=draws)
    mean = float((found.nats * every.weight).sum())
    assert mean == pytest.approx(written_out(model, PAIR, block, kind == "leader"), rel=1e-6)
    if draws < 3:
        assert float(found.nats.std()) > 0.01  # there was something to draw


@pytest.mark.parametrize(("kind", "block", "shifted"), LAYOUTS)
def test_a_choice_is_surer_than_by_as_many_plain_draws(kind, block, shifted):
    """Beside exact counts whose levels are drawn alone (LLaDA, 2502.09992, equation 6), and evenly spread."""
    model, count, passes = tiny(kind, block, shifted=shifted, sharp=6.0), 80, 5 + shifted
    ours = spread = alone = 0.0
    for seed in range(3):
        row = torch.randint(0, MASK, (14,), generator=torch.Generator().manual_seed(seed))
        given = [Pair(row[:6].tolist(), row[6:].tolist(), key) for key in range(count)]
        assert float(conditional(model, given[:1], draws=4).forwards) <= passes + (kind == "block")
        ours += float(conditional(model, given, draws=4).nats.var())
        tokens, ids = row.expand(count * passes, 14), torch.arange(count * passes)
        plain = Batch(tokens, (torch.arange(14) >= 6).expand(count * passes, 14), ids=ids)
        alone += float(score(model, plain, mode="bound", draws=1).totals.view(passes, count).mean(0).var())
        plain = Batch(tokens[:count], plain.answer[:count], ids=ids[:count])
        spread += float(score(model, plain, mode="bound", draws=passes).totals.var())
    assert ours < spread / 2
    assert ours < alone / 2.5


def test_what_is_expected_is_a_line_between_two_ends():
    """Its mean over all sets of k tokens that hold a token is as far along as (k - 1) / (n - 1)."""
    targets = torch.tensor([[False, True, True, True, True, True]])
    parts = torch.tensor([[0, 0, 0, 0, 0, 1]])
    base, causal = (
        torch.rand(2, 1, 6, generator=torch.Generator().manual_seed(0)) + torch.tensor([3.0, 0.0])[:, None, None]
    )
    known = Expected.of(base, causal, targets, parts)
    for k in range(1, 5):
        seen, times = torch.zeros(6), torch.zeros(6)
        for some in combinations(range(1, 5), k):
            hit = torch.zeros(1, 6, dtype=torch.bool)
            hit[0, list(some)] = True
            seen, times = seen + known.beside(hit)[0] * hit[0], times + hit[0]
        along = (causal + (base - causal) * (k - 1) / 3)[0, 1:5]
        torch.testing.assert_close(seen[1:5] / times[1:5], along)
    assert float(known.bound) == pytest.approx(float((base + causal)[0, 1:5].sum() / 2 + base[0, 5]), rel=1e-6)


def test_what_is_read_from_the_left_is_believed_where_it_is_less_than_with_all_hidden():
    targets, parts = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.long)
    base = torch.tensor([[1.0, 2.0, 3.0, math.inf], [1.0, 2.0, 3.0, 6.0]])
    causal = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0]])
    known = Expected.of(base, causal, targets, parts)
    assert known.alone[0].tolist() == causal[0].tolist()
    assert float(known.alone[1].mean()) == pytest.approx(3.0)
    assert known.bound.tolist() == [math.inf, pytest.approx(12.0)]


def test_networks_whose_copies_cannot_be_read_apart_get_the_same(monkeypatch):
    for kind, shifted in (("leader", True), ("block", False)):
        model = tiny(kind, 4, shifted=shifted, sharp=6.0)
        given = [Pair([1, 2, 3], [4, 5, 6, 7, 8, 9], 0), Pair([1, 2, 3, 4, 5], [6, 7], 1)]
        apart = conditional(model, given, draws=3)
        with monkeypatch.context() as changed:
            changed.setattr(scoring, "separable", lambda model, length: False)
            both = conditional(model, given, draws=3)
        torch.testing.assert_close(both.nats, apart.nats, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "block", "shifted"), LAYOUTS)
def test_seeds_say_all_that_is_random(kind, block, shifted):
    model, given = tiny(kind, block, shifted=shifted, sharp=6.0), [PAIR]
    one, same, other = (conditional(model, given, draws=3, seed=seed).nats[0] for seed in (4, 4, 5))
    assert one == same
    assert one != other


def test_forwards_are_rows_that_were_read():
    """With all hidden, from the left, and the draws; of two tokens each alone instead; of one nothing more."""
    many, two, one = (Pair([1, 2, 3], [4, 5, 6, 7, 8, 9][:n]) for n in (6, 2, 1))
    alone = lambda model, pair: float(conditional(model, [pair], draws=3).forwards)
    full, shifted = tiny("full", sharp=6.0), tiny("full", shifted=True, sharp=6.0)
    assert [alone(full, pair) for pair in (many, two, one)] == [4, 3, 1]
    assert [alone(shifted, pair) for pair in (many, two, one)] == [5, 3, 1]
    led = tiny("leader", 4, shifted=True, sharp=6.0)  # the clean copy once, which is read from the left
    assert alone(led, many) == 5
    assert alone(led, Pair([1, 2, 3, 4], [5])) == 1  # a leader
