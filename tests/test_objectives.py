"""Objectives are what they claim: the parent's loss where they start, bounds that add up, and nothing leaks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from models import MASK, TINY, tiny
from torch import Tensor

from unveil import rules, spec
from unveil.context import EVERYTHING, Context
from unveil.denoiser import Denoiser
from unveil.nn import alignment, reading
from unveil.nn.transformer import Transformer
from unveil.objectives import Batch
from unveil.objectives.adapt import Adapt, annealed
from unveil.objectives.autoregressive import Autoregressive
from unveil.objectives.block import Block, in_streams, two_streams
from unveil.objectives.leader import Leader, draw_followers
from unveil.objectives.masked import Masked, nats
from unveil.processes import Draw

ALL = ["autoregressive", "masked", "block(size=4)", "adapt", "leader(n=3)", "masked(estimator='bernoulli')"]


def batch(rows: int = 3, length: int = 14, *, seed: int = 0, documents: bool = False, **options) -> Batch:
    tokens = torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids = (torch.arange(length)[None] >= torch.tensor([5, 9, 12])[:rows, None]).long() if documents else None
    options = {"ids": torch.arange(7, 7 + rows), "seed": 3, "progress": 0.99, "step": 5} | options
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), ids, **options)


def network(kind: str = "causal", *, shifted: bool = False) -> Denoiser:
    return tiny(kind, 4 if kind in ("block", "leader") else None, shifted=shifted, sharp=6.0).double().train()


def fits(text: str) -> Denoiser:
    return network("full") if text.startswith("block") else network("full", shifted=True)


def gradients(model: Denoiser, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=False))


class Table(Denoiser):
    """Logits at i for token i: any function of the whole noisy row, drawn once."""

    mask_id = 3

    def __init__(self, length: int, seed: int = 0, vocab: int = 4):
        super().__init__()
        maker = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(vocab**length, length, vocab, generator=maker, dtype=torch.float64)
        self.base = vocab ** torch.arange(length)

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        found = self.logits[(tokens * self.base).sum(1)]
        return found if ctx.read is None else found.flatten(0, 1)[ctx.read]


class NextOf(Denoiser):
    """Logits at i for token i + 1: a table of what follows each token."""

    mask_id = 5

    def __init__(self, follows: list[int]):
        super().__init__()
        self.table = 20.0 * F.one_hot(torch.tensor(follows), 6)

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        found = self.table[tokens].float()
        return found if ctx.read is None else found.flatten(0, 1)[ctx.read]


# Where the homotopy starts


def test_autoregressive_is_the_parents_loss_bare_and_shifted():
    given, bare = batch(), network()
    wanted = bare(given.tokens, Context(rule=rules.causal))[:, :-1]
    wanted = F.cross_entropy(wanted[..., :MASK].flatten(0, 1).float(), given.tokens[:, 1:].flatten())
    shifted = network(shifted=True)
    for model in (bare, shifted):
        loss = Autoregressive()(model, given)
        torch.testing.assert_close(loss.mean, wanted)
        assert int(loss.count) == 3 * 13


def test_leader_of_nothing_is_the_parents_loss_and_gradients():
    given, model = batch(documents=True), network(shifted=True)
    parent, ours = Autoregressive()(model, given), Leader(n=0, grow=0.0)(model, given)
    assert torch.equal(parent.total, ours.total)
    for a, b in zip(gradients(model, parent.mean), gradients(model, ours.mean), strict=True):
        assert torch.equal(a, b)


def test_clean_half_and_small_causal_windows_equal_the_parent():
    given, model = batch(length=13), network()
    length = 13
    parent = model(given.tokens, Context(rule=rules.causal))
    for n in (1, 3):
        drawn = draw_followers(given, n, "count")
        tokens, ctx = two_streams(given, drawn, MASK, n + 1, token_causal=True)
        torch.testing.assert_close(model(tokens, ctx)[:, length:], parent, rtol=0, atol=1e-12)
        # Causal edges inside the open block: its leader sees exactly what the parent sees, and predicts the same.
        narrow = replace(ctx, rule=rules.both(ctx.rule, lambda q, k: (k >= length) | (k <= q)))
        leaders = slice(0, length, n + 1)
        torch.testing.assert_close(
            model(tokens, narrow)[:, :length][:, leaders], parent[:, leaders], rtol=0, atol=1e-12
        )
        if n == 1:  # with one follower that is all that is ever asked of z
            assert bool((drawn.hit == (torch.arange(length) % 2 == 1) & given.targets).all())


def test_leader_n_1_with_causal_windows_is_the_parents_loss(monkeypatch):
    """What stands between n = 0 and the first bidirectional block changes nothing at all."""
    given, model = batch(), network(shifted=True)
    plain = rules.teacher_forcing

    def narrow(length: int, size: int, *, token_causal: bool = False):
        return rules.both(plain(length, size, token_causal=token_causal), lambda q, k: (k >= length) | (k <= q))

    monkeypatch.setattr(rules, "teacher_forcing", narrow)
    ours = Leader(n=1, grow=0.0, full=0.0, ar=0.0)(model, given)
    torch.testing.assert_close(ours.total, Autoregressive()(model, given).total)


# Nobody sees what they must not


def leader_logits(model: Denoiser, given: Batch, drawn: Draw, n: int) -> tuple[Tensor, Tensor]:
    tokens, ctx = two_streams(given, drawn, MASK, n + 1, token_causal=True)
    return model(tokens, ctx).split(given.tokens.shape[1], dim=1)


def test_streams_see_only_what_they_may():
    n, given, model = 3, batch(rows=1, length=16), network()
    size, drawn = n + 1, draw_followers(batch(rows=1, length=16), n, "count")
    noisy, clean = leader_logits(model, given, drawn, n)
    other = draw_followers(replace(given, seed=99), n, "count")
    assert torch.equal(leader_logits(model, given, other, n)[1], clean)  # c does not depend on z
    for changed in range(16):
        tokens = given.tokens.clone()
        tokens[:, changed] = (tokens[:, changed] + 1) % MASK
        z, c = leader_logits(model, replace(given, tokens=tokens), drawn, n)
        moved = ((z - noisy).abs().amax(-1) > 1e-12)[0]
        own, hidden = changed // size, bool(drawn.hit[0, changed])
        for at in range(16):
            sees = at // size > own or (at // size == own and not hidden)
            assert not moved[at] or sees
        assert bool(moved[(own + 1) * size :].all())  # and what it may see, it does
        assert torch.equal(c[:, :changed], clean[:, :changed])


def test_teacher_forcing_is_bd3lms_mask_spelled_out():
    length, size = 10, 4
    q, k = torch.arange(2 * length)[None, :, None], torch.arange(2 * length)[None, None]
    ours = rules.teacher_forcing(length, size)(q, k)[0]
    n, block_q, block_k = length, (q[0] % length) // size, (k[0] % length) // size
    x0_q, x0_k = q[0] >= n, k[0] >= n
    diagonal = (block_q == block_k) & (x0_q == x0_k)
    offset = (block_q > block_k) & x0_k & ~x0_q
    causal = (block_q >= block_k) & x0_k & x0_q
    assert torch.equal(ours, diagonal | offset | causal)


def test_one_block_is_masked_diffusion():
    given, model = batch(), network("full")
    for estimator in ("count", "bernoulli"):
        torch.testing.assert_close(
            Block(size=14, estimator=estimator)(model, given).total, Masked(estimator)(model, given).total
        )


@pytest.mark.parametrize("text", ALL)
def test_documents_do_not_see_each_other(text):
    given, model, objective = batch(documents=True), fits(text), spec.build("objectives", text)
    first = given.documents == 0
    asked = replace(given, answer=first)  # only the first document of each row is scored
    tokens = torch.where(first, given.tokens, (given.tokens + 1) % MASK)
    before, after = objective(model, asked), objective(model, replace(asked, tokens=tokens))
    torch.testing.assert_close(before.total, after.total, rtol=0, atol=1e-10)
    assert int(before.count) == int((first[:, 1:]).sum())


# The shift


def test_a_table_of_next_tokens_solves_the_toy():
    follows = [1, 2, 3, 4, 0, 0]
    tokens = (torch.arange(12)[None] + torch.arange(2)[:, None]) % 5
    given = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    model = NextOf(follows)
    for objective in (Autoregressive(), Leader(n=1, grow=0.0, full=0.0)):
        assert float(objective(model, given).mean) < 1e-6
    hidden = torch.zeros_like(given.answer)
    hidden[:, 4::3] = True  # what stands before each is visible
    assert float(nats(model, given, Draw(hidden, hidden.float()), back=1).sum()) < 1e-6
    assert float(nats(model, given, Draw(hidden, hidden.float())).sum()) > 1


def test_block_refuses_a_shifted_model():
    with pytest.raises(ValueError, match="shifted"):
        Block()(network(shifted=True), batch())


# Estimators


def test_exact_count_is_the_integral_over_t():
    model, x, n = Table(4), torch.tensor([0, 2, 1, 1]), 3  # position 0 is given
    given = Batch(x[None], torch.ones(1, 4, dtype=torch.bool))

    def surprise(hidden: tuple[int, ...]) -> float:
        hit = torch.zeros(1, 4, dtype=torch.bool)
        hit[0, list(hidden)] = True
        return float(nats(model, given, Draw(hit, hit.float())).sum())

    by_count = [[surprise(s) for s in combinations((1, 2, 3), k)] for k in range(1, n + 1)]
    enumerated = sum(sum(some) / len(some) / k for k, some in enumerate(by_count, 1))
    steps = (torch.arange(20_000).double() + 0.5) / 20_000
    integral = sum(
        float((steps ** (k - 1) * (1 - steps) ** (n - k)).mean()) * sum(some) for k, some in enumerate(by_count, 1)
    )
    assert enumerated == pytest.approx(integral, rel=1e-6)
    many = replace(given, tokens=x.expand(20_000, 4), answer=given.answer.expand(20_000, 4))
    assert float(Masked()(model, many).total) / 20_000 == pytest.approx(enumerated, rel=0.01)
    assert float(Masked("bernoulli", eps=1e-3)(model, many).total) / 20_000 == pytest.approx(enumerated, rel=0.05)


# Splits, schedules, the mask


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("text", ALL)
def test_a_split_changes_nothing(text, documents):
    given, model, objective = batch(documents=documents, progress=0.1), fits(text), spec.build("objectives", text)
    whole = objective(model, given)
    parts = []
    for rows in (slice(0, 1), slice(1, 3)):
        cut = {name: value[rows] for name, value in vars(given).items() if isinstance(value, Tensor)}
        parts.append(objective(model, replace(given, **cut)))
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    assert int(whole.count) == int(parts[0].count + parts[1].count)
    assert torch.equal(objective(model, given).total, whole.total)  # and nothing is drawn from a global generator
    assert all(torch.isfinite(g).all() for g in gradients(model, whole.mean))


def test_annealing_begins_causal_and_ends_full():
    given, model = batch(), network("full", shifted=True)
    objective = Adapt(anneal=0.5)
    q, k = torch.arange(200)[None, :, None], torch.arange(200)[None, None]
    assert annealed(0.0, 1, 2) is rules.causal
    assert annealed(1.0, 1, 2) is None
    half, again, other = annealed(0.5, 1, 2), annealed(0.5, 1, 2), annealed(0.5, 1, 3)
    assert half
    assert again
    assert other
    assert bool((half(q, k) | ~(k <= q)).all())
    assert float(half(q, k)[k > q].double().mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(half(q, k), again(q, k))
    assert not torch.equal(half(q, k), other(q, k))
    for progress, rule in ((0.0, rules.causal), (0.5, None), (1.0, None)):
        here = replace(given, progress=progress)
        assert torch.equal(objective(model, here).total, Masked("bernoulli")(model, here, rule).total)
    begun = replace(given, progress=0.0)
    assert torch.equal(Adapt(hard=True)(model, begun).total, Masked("bernoulli")(model, begun).total)


def test_blocks_grow_in_equal_stages():
    objective = Leader(n=16, grow=0.5)
    sizes = [objective.size(p) for p in (0.0, 0.09, 0.11, 0.21, 0.31, 0.41, 0.5, 1.0)]
    assert sizes == [1, 1, 2, 4, 8, 16, 16, 16]
    assert [Leader(n=6, grow=0.4).size(p) for p in (0.0, 0.11, 0.21, 0.31, 0.9)] == [1, 2, 4, 6, 6]
    assert Leader(n=8, grow=0.0).size(0.0) == 8


def test_a_share_of_steps_is_whole():
    objective, given = Leader(n=4, grow=0.4, full=0.25), batch(length=4)
    late = [objective.whole(replace(given, step=step, progress=0.6)) for step in range(200)]
    assert abs(sum(late) - 50) <= 2
    assert not any(objective.whole(replace(given, step=step, progress=0.3)) for step in range(200))
    model = network(shifted=True)
    whole = Leader(n=4, grow=0.0, full=1.0)(model, given)
    assert torch.equal(whole.total, Masked()(model, given).total)
    bare = network()
    assert torch.equal(Leader(n=4, grow=0.0, full=1.0)(bare, given).total, whole.total)


def test_leader_adds_up_every_target_once():
    """With every logit equal, the bound is log V per target however it is split."""

    class Flat(NextOf):
        def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
            assert ctx.read is not None
            return torch.zeros(len(ctx.read), 6)

    tokens = torch.randint(0, 5, (3, 14))
    given = replace(batch(documents=True), tokens=tokens)
    for objective in (Leader(4, 0, 0, 0), Leader(4, 0, 1, 0), Leader(3, 0, 0, 0), Masked(), Block(5), Autoregressive()):
        loss = objective(Flat([0] * 6), given)
        assert objective.bound
        assert float(loss.mean) == pytest.approx(math.log(5), rel=1e-6)  # the mask is no candidate
    loss = Leader(4, 0, 0, ar=0.5)(Flat([0] * 6), given)
    assert not Leader().bound
    assert float(loss.parts["ar"] / loss.count) == pytest.approx(math.log(5), rel=1e-6)
    assert float(loss.total) > float(loss.parts["diffusion"])


@pytest.mark.parametrize("text", ALL)
def test_the_mask_is_never_predicted_nor_taught(text):
    given, model, objective = batch(), fits(text), spec.build("objectives", text)
    head = next(m for m in model.modules() if isinstance(m, Transformer)).head.weight
    (gradient,) = torch.autograd.grad(objective(model, given).mean, [head])
    assert not gradient[MASK].any()
    with torch.no_grad():
        before = objective(model, given).total
        head[MASK] += 100
        assert torch.equal(objective(model, given).total, before)
    given.tokens[1, 4] = MASK
    with pytest.raises(ValueError, match="mask token 15 itself, at position 4 of row 1"):
        objective(model, given)


def test_a_model_without_a_mask_cannot_diffuse():
    model = Transformer(replace(TINY, mask_id=-1))
    assert torch.isfinite(Autoregressive()(model, batch()).mean)
    with pytest.raises(ValueError, match="no mask token"):
        Masked()(model, batch())


def test_options_are_checked():
    with pytest.raises(ValueError, match="n >= 0"):
        spec.build("objectives", "leader(n=-1)")
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        spec.build("objectives", "leader(full=2)")
    with pytest.raises(ValueError, match="at least 1 token"):
        spec.build("objectives", "block(size=0)")
    with pytest.raises(ValueError, match="count, bernoulli"):
        spec.build("objectives", "masked(estimator='x')")(network("full"), batch())
    assert spec.names("objectives") == ["adapt", "autoregressive", "block", "leader", "masked", "preference"]
    assert "parent" not in spec.options(Leader)


# The frozen parent


def test_the_parent_teaches_at_first_and_not_at_the_end():
    given, model = batch(documents=True), network(shifted=True)
    objective = Leader(n=3, grow=0.0, full=0.0, ar=0.0, kl=0.5, align=1.0)
    with pytest.raises(ValueError, match="frozen parent"):
        objective(model, given)
    objective.parent = network()
    early = objective(model, replace(given, progress=0.0))
    assert set(early.parts) == {"diffusion", "kl", "align"}
    wanted = early.parts["diffusion"] + 0.5 * early.parts["kl"] + early.parts["align"]
    torch.testing.assert_close(early.total.detach(), wanted)
    assert float(early.parts["kl"]) > 0
    assert float(early.parts["align"]) > 0
    assert all(torch.isfinite(g).all() for g in gradients(model, early.mean))
    assert all(p.grad is None for p in objective.parent.parameters())
    assert set(objective(model, replace(given, progress=1.0)).parts) == {"diffusion"}
    assert not any(module._forward_hooks for module in model.modules())


def test_alignment_is_nothing_where_the_states_are_the_parents():
    """Hidden tokens' states in z, given nothing hidden, under a causal rule, are the parent's."""
    given, model = batch(), network()
    drawn = Draw(torch.zeros_like(given.answer), torch.zeros(given.tokens.shape))
    tokens, ctx = two_streams(given, drawn, MASK, 14, token_causal=True)
    ctx = replace(ctx, rule=rules.both(ctx.rule, lambda q, k: (k >= 14) | (k <= q)))
    flat = given.targets.flatten().nonzero()[:, 0]
    with alignment.listening(model) as mine:
        found = reading.logits(model, tokens, ctx, in_streams(flat, 14, 0) - 1)
    with alignment.listening(model) as theirs:
        taught = reading.logits(model, given.tokens, Context(rule=rules.causal), flat - 1)
    rows = in_streams(flat, 14, 0) - 1
    mine = [mine[0].flatten(0, 1)[rows], mine[1]]
    theirs = [theirs[0].flatten(0, 1)[flat - 1], theirs[1]]
    assert not bool((alignment.apartness(theirs, mine).abs() > 1e-6).any())
    assert not bool((alignment.divergence(taught, found, MASK).abs() > 1e-6).any())


def test_divergence_is_kl_over_the_shared_vocabulary():
    taught, found = torch.randn(5, 7), torch.randn(5, 9)
    found[:, 8] = -torch.inf  # a mask the parent does not have
    p, q = taught.softmax(1), found.softmax(1)[:, :7]
    torch.testing.assert_close(alignment.divergence(taught, found, 8), (p * (p / q).log()).sum(1))
    found = torch.randn(5, 7)
    found[:, 2] = -torch.inf  # a token of the parent's that serves as mask
    assert torch.isfinite(alignment.divergence(taught, found, 2)).all()
