"""Scores are exact where they say so, bounds where they say so, and always of the same tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
import torch.nn.functional as F
from models import MASK, tiny
from torch import Tensor

from unveil import rules
from unveil.attention import Attention
from unveil.context import EVERYTHING, Context
from unveil.denoiser import Denoiser
from unveil.evaluate.likelihood import score
from unveil.evaluate.streams import Streams
from unveil.nn.transformer import Transformer
from unveil.objectives import Batch, block, leader, masked
from unveil.processes import Draw


def batch(rows: int = 5, length: int = 13, *, documents: bool = False) -> Batch:
    tokens = torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(2))
    marks = (torch.arange(length)[None] >= torch.arange(3, 3 + rows)[:, None]).long() if documents else None
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), marks)


class Flat(Denoiser):
    """Every token is as likely as any other."""

    mask_id = 7

    def __init__(self, kind: str = "full", block: int | None = None):
        super().__init__()
        self.attention = Attention(kind, block)

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        assert ctx.read is not None
        return torch.zeros(len(ctx.read), 8)


KINDS = [("full", None), ("block", 4), ("leader", 4), ("causal", None)]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("kind", "block"), KINDS)
def test_a_uniform_model_scores_log_v_exactly(kind, block, documents):
    given = batch(documents=documents)
    given.tokens %= 7
    found = score(Flat(kind, block), given, draws=3)
    assert found.nats == pytest.approx(math.log(7), rel=1e-6)
    assert found.tokens == int(given.targets.sum())
    assert found.stderr < 1e-6
    assert found.perplexity == pytest.approx(7, rel=1e-5)
    assert (found.exact, found.kind) == ((True, "exact") if kind == "causal" else (False, "bound"))


def test_exact_is_the_causal_likelihood():
    given, model = batch(documents=True), tiny("leader", 4, shifted=True, sharp=6.0)
    bare = model.model
    assert isinstance(bare, Transformer)
    assert given.documents is not None
    rule = rules.both(rules.causal, rules.documents(given.documents))
    with torch.no_grad():
        logp = bare(given.tokens, Context(rule=rule))[..., :MASK].log_softmax(-1)[:, :-1]
    nll = -logp.gather(-1, given.tokens[:, 1:, None])[..., 0] * given.targets[:, 1:]
    found = score(model, given, mode="exact", rows=2)
    assert found.exact
    assert found.noise == 0
    assert found.nats == pytest.approx(float(nll.sum() / given.targets.sum()), rel=1e-6)
    torch.testing.assert_close(found.totals.float(), nll.sum(1))
    bare.attention = Attention("causal")
    assert score(bare, given).nats == pytest.approx(found.nats, rel=1e-6)
    off = found.totals - found.nats * found.counts
    assert found.stderr == pytest.approx(math.sqrt(5 * float(off.var())) / found.tokens, rel=1e-3)


def test_blocks_of_one_leader_are_exact():
    given, model = batch(), tiny("leader", 4, shifted=True, sharp=6.0)
    assert score(model, given, block=1, draws=1).nats == pytest.approx(score(model, given, mode="exact").nats, rel=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("kind", "block"), KINDS[:3])
def test_pieces_and_iterables_change_nothing(kind, block, shifted):
    if kind == "block" and shifted:
        pytest.skip("block models are not shifted")
    given, model = batch(documents=True), tiny(kind, block, shifted=shifted, sharp=6.0)
    whole = score(model, given, draws=2)
    assert score(model, given, draws=2, rows=2).nats == pytest.approx(whole.nats, rel=1e-6)
    cut = [
        Batch(given.tokens[rows], given.answer[rows], None if given.documents is None else given.documents[rows])
        for rows in (slice(0, 3), slice(3, 5))
    ]
    assert score(model, iter(cut), draws=2).nats == pytest.approx(whole.nats, rel=1e-6)
    assert score(model, given, draws=2, seed=1).nats != whole.nats
    model.train()
    score(model, given, draws=1)
    assert model.training


def test_a_bound_is_a_mean_over_hidden_sets():
    """On short rows the bound can be written out: n / k times the mean over all sets of k."""
    given, model = batch(rows=1, length=4), tiny("full", sharp=6.0)
    total = 0.0
    for k in (1, 2, 3):
        sets = list(combinations((1, 2, 3), k))
        for some in sets:
            noisy = given.tokens.clone()
            noisy[0, list(some)] = MASK
            with torch.no_grad():
                logits = model(noisy)[0, list(some), :MASK]
            total += float(F.cross_entropy(logits, given.tokens[0, list(some)], reduction="sum")) / k / len(sets)
    many = Batch(given.tokens.expand(400, 4), given.answer.expand(400, 4))
    found = score(model, many, draws=3, rows=400)
    assert found.nats * 3 == pytest.approx(total, abs=4 * found.noise * 3)
    assert found.noise < 0.05 * found.nats


class Joint(Denoiser):
    """The true conditionals of a joint distribution over three tokens, and worse ones of the same kind."""

    mask_id = 2

    def __init__(self, blur: float = 0.0):
        super().__init__()
        self.p = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64) ** 3
        self.p /= self.p.sum()
        self.blur = blur
        self.known: dict[tuple[int, ...], Tensor] = {}

    def conditionals(self, row: tuple[int, ...]) -> Tensor:
        """(4, 2) given what of a row is not hidden; position 0 means nothing."""
        seen = torch.zeros_like(self.p)
        for some in product(*[range(2) if token == self.mask_id else [token] for token in row]):
            seen[some] = self.p[some]
        each = [seen.sum([j for j in range(3) if j != i]) / seen.sum() for i in range(3)]
        return torch.stack([torch.full((2,), 0.5).double(), *each])

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        rows = [tuple(row) for row in tokens[:, 1:].tolist()]
        self.known |= {row: self.conditionals(row) for row in set(rows) - set(self.known)}
        p = (1 - self.blur) * torch.stack([self.known[row] for row in rows]) + self.blur / 2
        found = torch.cat([p.log(), torch.full_like(p[..., :1], 9.0)], -1)
        return found if ctx.read is None else found.flatten(0, 1)[ctx.read]


def test_the_bound_is_not_below_the_likelihood():
    """With true conditionals every order of the chain rule gives the likelihood, and the bound is their mean; with
    worse ones it lies above, on average over the joint: the difference is a KL divergence."""
    rows = [(0, *x) for x in product(range(2), repeat=3)]
    tokens = torch.tensor(rows).repeat(100, 1)
    for blur in (0.0, 0.3):
        model = Joint(blur)
        found = score(model, Batch(tokens, torch.ones_like(tokens, dtype=torch.bool)), draws=3, rows=800)
        weight = torch.stack([model.p[x[1:]] for x in rows])
        gap = found.totals.view(100, 8).mean(0) + weight.log()
        if blur:
            assert float((weight * gap).sum()) > 0.02
        else:
            assert abs(float(gap.mean())) < 4 * found.noise * 3
            assert found.noise * 3 < 0.1


def test_what_is_not_known_is_refused():
    given = batch()
    with pytest.raises(ValueError, match="predicts no next token"):
        score(tiny("full"), given, mode="exact")
    with pytest.raises(ValueError, match="auto, exact, bound"):
        score(tiny("full"), given, mode="best")
    with pytest.raises(ValueError, match="nothing to score"):
        score(tiny("full"), replace(given, answer=torch.zeros_like(given.answer)))
    with pytest.raises(ValueError, match="nothing to score"):
        score(tiny("full"), [])
    with pytest.raises(ValueError, match="at least one draw"):
        score(tiny("full"), given, draws=0)
    with pytest.raises(ValueError, match="got -1"):
        score(tiny("full"), given, block=-1)
    model = Flat()
    model.mask_id = -1
    with pytest.raises(ValueError, match="no mask token"):
        score(model, given)
    given.tokens[0, 3] = MASK
    with pytest.raises(ValueError, match="mask token"):
        score(tiny("full"), given)


def test_no_perplexity_of_what_is_neither():
    found = score(Flat(), Batch(torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)), draws=1)
    with pytest.raises(ValueError, match="neither a likelihood nor a bound"):
        _ = replace(found, bound=False).perplexity
    assert replace(found, bound=False).kind == "neither"
    assert math.isnan(found.noise)
    assert replace(found, nats=1e4).perplexity == math.inf


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("kind", "shifted"), [("leader", True), ("leader", False), ("block", False), ("block", True)])
def test_reading_the_clean_copy_once_changes_no_number(kind, shifted, documents):
    given, model = batch(length=14, documents=documents), tiny(kind, 4, shifted=shifted, sharp=6.0)
    given = replace(given, ids=torch.arange(5))
    leads = kind == "leader" or shifted
    layout, size = (leader, 3) if leads else (block, 4)
    found = score(model, given, draws=3)
    with torch.inference_mode():
        each = []
        for turn in range(3):
            options = {"turn": turn, "turns": 3}
            if leads:
                drawn = leader.draw_followers(given, size, "count", **options)
            else:
                drawn = masked.hide(given, size, given.targets, "count", **options)
            each.append(layout.nats(model, given, drawn, size))
    torch.testing.assert_close(found.totals.float(), torch.stack(each).mean(0), rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_a_shifted_block_model_reads_finished_blocks_whole():
    """Fast-dLLM v2: a block's first token is read where the block before it ends, the others within their block."""
    given, model = batch(rows=3, length=12), tiny("block", 4, shifted=True, sharp=6.0)
    hit = torch.zeros_like(given.tokens, dtype=torch.bool)
    hit[0, [1, 2, 6]], hit[1, [5, 7, 9, 10, 11]], hit[2, 3] = True, True, True
    total = torch.zeros(3)
    for start in (0, 4, 8):
        seen = given.tokens[:, : start + 4].clone()
        hidden = hit[:, : start + 4].clone()
        hidden[:, :start] = False
        noisy = model(seen.masked_fill(hidden, MASK), Context(rule=rules.not_later(4)))
        noisy[..., MASK], asked = -torch.inf, seen[..., None]
        total -= noisy.log_softmax(-1).gather(-1, asked)[..., 0].where(hidden, 0.0).sum(1)
        if start:
            clean = model(seen, Context(rule=rules.not_later(4)))
            clean[..., MASK] = -torch.inf
            total -= clean.log_softmax(-1).gather(-1, asked)[:, start, 0]
    drawn = Draw(hit, hit.float())
    torch.testing.assert_close(Streams(model, given, 4, leads=True).nats(drawn), total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(leader.nats(model, given, drawn, 3), total, rtol=1e-4, atol=1e-4)


def test_a_sliding_window_reads_both_copies_in_one_pass():
    model = tiny("leader", 4, shifted=True, sharp=6.0)
    wide = score(model, batch(), draws=2)
    model.model.s = replace(model.model.s, sliding=40)
    assert score(model, batch(), draws=2).nats == wide.nats
    model.model.s = replace(model.model.s, sliding=20)  # narrower than both copies, wider than either
    assert score(model, batch(), draws=2).nats == pytest.approx(wide.nats, rel=1e-6)


def test_layouts_can_be_chosen():
    given, model = batch(), tiny("leader", 4, shifted=True, sharp=6.0)
    own, wide, whole = (score(model, given, block=size, draws=4) for size in (None, 8, 0))
    assert "blocks of 4" in own.layout
    assert "blocks of 8" in wide.layout
    assert "full attention" in whole.layout
    assert len({own.nats, wide.nats, whole.nats}) == 3
    assert own.tokens == wide.tokens == whole.tokens
    assert "clean context" in score(tiny("block", 4), given, draws=1).layout
    bare = tiny("leader", 4, sharp=6.0)
    assert score(bare, given, draws=2).nats == pytest.approx(score(model, given, draws=2).nats, rel=1e-6)
