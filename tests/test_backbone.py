"""Windows, rows read, stores and the shift change what is computed and never what comes out."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import CLASSIC

from unveil import rules
from unveil.context import Context, Store, Window
from unveil.nn.grow import add_mask
from unveil.nn.moe import Experts, Mixture
from unveil.nn.norm import RMSNorm
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Gains, Shape, Transformer

PLAIN = Shape(vocab=40, width=32, layers=3, heads=4, kv_heads=2, hidden=48, head_size=8, mask_id=39, context=64)
SHAPES = {
    "plain": PLAIN,
    "classic": replace(PLAIN, kv_heads=4, **CLASSIC, tied=True, biases=frozenset({"qkv", "out", "mlp"})),
    "experts": replace(PLAIN, qk_norm="head", mixture=Mixture(6, 2, 24, True, frozenset({0}))),
    "grouped": replace(PLAIN, mixture=Mixture(8, 2, 12, True, frozenset({0}), "sigmoid", True, 4, 2, 2.5, 16)),
    "sliding": replace(PLAIN, sliding=4, qk_norm="all", clip=0.5),
    "mixed": replace(PLAIN, sliding=4, far=frozenset({1}), theta_near=100.0, order="both", norm_offset=1.0),
    "parallel": replace(PLAIN, norm="layer", order="parallel", gated=False, activation="gelu", turned=4),
    "gains": replace(PLAIN, order="post", unturned=frozenset({1}), gains=Gains(3.0, 0.4, 1.5, 0.2)),
}
RULES = {"full": None, "causal": rules.causal, "blocks": rules.not_later(4)}
RAGGED = torch.tensor([3, 0, 7])


def network(shape):
    torch.manual_seed(0)
    model = Transformer(shape).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture(params=SHAPES)
def model(request):
    return network(SHAPES[request.param])


@pytest.fixture(params=["bare", "shifted"])
def denoiser(request, model):
    return model if request.param == "bare" else Shifted(model)


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return torch.randint(0, 39, (3, 13))


def same(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("window", [slice(0, 13), slice(5, 9), slice(1, 13), Window(RAGGED, 5), Window(RAGGED + 1, 4)])
@torch.no_grad()
def test_a_window_is_the_slice_of_the_whole(denoiser, tokens, rule, window):
    store = Store(13)
    whole = denoiser(tokens, Context(rule=RULES[rule], store=store))
    same(whole, denoiser(tokens, Context(rule=RULES[rule])))
    part = Context(window=window, rule=RULES[rule], store=store)
    assert isinstance(part.window, Window)
    same(denoiser(tokens, part), part.window.take(whole))


@pytest.mark.parametrize("window", [None, slice(5, 9), Window(RAGGED, 5), Window(RAGGED + 1, 4)])
@torch.no_grad()
def test_rows_read_are_rows_of_the_whole(denoiser, tokens, window):
    store = Store(13)
    denoiser(tokens, Context(store=store))
    ctx = Context(window=window, store=store)
    logits = denoiser(tokens, ctx).flatten(0, 1)
    read = torch.tensor([0, 7, 3, 3, len(logits) - 1, 4])
    same(denoiser(tokens, replace(ctx, read=read)), logits[read])
    assert denoiser(tokens, replace(ctx, read=read[:0])).shape == (0, 40)


@torch.no_grad()
def test_the_shift_moves_logits_by_one(model, tokens):
    bare, shifted = model(tokens), Shifted(model)(tokens)
    same(shifted[:, 1:], bare[:, :-1])
    same(shifted[:, 0], bare[:, 0])


def test_shifting_twice_is_a_mistake(model):
    with pytest.raises(AssertionError):
        Shifted(Shifted(model))


@torch.no_grad()
def test_step_by_step_equals_at_once(model, tokens):
    store = Store(13)
    steps = [model(tokens, Context(slice(at, at + 1), rules.causal, store=store)) for at in range(13)]
    same(torch.cat(steps, 1), model(tokens, Context(rule=rules.causal)))


@torch.no_grad()
def test_positions_of_their_own(model, tokens):
    """Two documents in one row, each counted from 0, equal the documents alone."""
    ids = torch.tensor([0] * 6 + [1] * 7).expand(3, -1)
    at = torch.cat([torch.arange(6), torch.arange(7)])
    rule = rules.both(rules.causal, rules.documents(ids))
    apart = [model(part, Context(rule=rules.causal)) for part in (tokens[:, :6], tokens[:, 6:])]
    for positions in (at, at.expand(3, -1)):
        same(model(tokens, Context(rule=rule, positions=positions)), torch.cat(apart, 1))


@torch.no_grad()
def test_hidden_and_logits_are_forward(model, tokens):
    hidden = model.hidden(tokens)
    assert hidden.shape == (3, 13, 32)
    same(model.logits(hidden), model(tokens))
    same(model.body(model.embed(tokens)), hidden)


def test_checkpointing_changes_no_gradient(model, tokens):
    grads = []
    for again in (False, True):
        twin = copy.deepcopy(model).train()
        twin.checkpointing = again
        twin(tokens, Context(rule=rules.causal, read=torch.arange(20))).logsumexp(-1).sum().backward()
        grads.append([p.grad for p in twin.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        same(a, b)


def test_the_sliding_window_hides_what_is_far(tokens):
    model = network(replace(PLAIN, sliding=4, layers=1))
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 39
    with torch.no_grad():
        for ctx, seen in ((Context(rule=rules.causal), range(3, 7)), (Context(), range(7))):
            differs = (model(tokens, ctx) != model(changed, ctx)).flatten(2).any(2).any(0)
            assert differs.nonzero().flatten().tolist() == list(seen)
    with pytest.raises(ValueError, match="sliding"):
        model(tokens, Context(store=Store(13), positions=torch.arange(13)))


def test_learned_positions_end():
    model = network(replace(SHAPES["classic"], context=8))
    with pytest.raises(ValueError, match="9 positions, but this network has learned 8"):
        model(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_root_mean_square_norm(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(16, 1e-6).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 5, 16).to(dtype).requires_grad_()
    grad = torch.randn(2, 3, 5, 16).to(dtype)
    y = norm(x)
    found = torch.autograd.grad(y, (x, norm.weight), grad)
    expected = F.rms_norm(x, (16,), norm.weight, 1e-6)
    loose = {"atol": 0.1, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(y, expected, **loose)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (x, norm.weight), grad), strict=True):
        torch.testing.assert_close(ours, theirs, **loose)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), y)


@pytest.mark.parametrize("renormalise", [False, True])
def test_experts_equal_a_loop_over_tokens(renormalise):
    torch.manual_seed(0)
    layer = Experts(16, Mixture(5, 2, 8, renormalise))
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(2, 4, 16)
    expected = torch.zeros(8, 16)
    for row, token in enumerate(x.view(8, 16)):
        share, chosen = layer.router(token).softmax(-1).topk(2)
        share = share / share.sum() if renormalise else share
        for weight, expert in zip(share, chosen.tolist(), strict=True):
            gate, up, down = layer.weights[expert]
            expected[row] += weight * ((F.silu(token @ gate.T) * (token @ up.T)) @ down)
    torch.testing.assert_close(layer(x), expected.view_as(x), atol=1e-4, rtol=1e-4)


def test_experts_may_live_elsewhere():
    layer = Experts(16, Mixture(5, 2, 8))
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(3, 16)
    before = layer(x)
    shelf = [w.detach().clone() for w in layer.weights]
    layer.weights = torch.nn.ParameterList()
    layer.fetch = shelf.__getitem__
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("used", "row", "rows"), [(None, 40, 41), (36, 36, 40)])
def test_a_mask_token_is_added_once(tied, used, row, rows, tokens):
    model = network(replace(PLAIN, mask_id=-1, tied=tied))
    old = model.embed.weight.detach().clone()
    tokens = tokens.clamp(max=35)
    with torch.no_grad():
        before = model(tokens)
    wrapped = Shifted(model)
    assert add_mask(wrapped, used=used) == row
    assert add_mask(wrapped, used=used) == row
    assert (wrapped.mask_id, model.mask_id, model.s.mask_id, model.s.vocab) == (row, row, row, rows)
    assert (model.head.weight is model.embed.weight) == tied
    assert model.embed.weight.shape == model.head.weight.shape == (rows, 32)
    kept = [i for i in range(40) if i != row]
    assert torch.equal(model.embed.weight[kept], old[kept])
    mean = old[:row].mean(0)
    assert 0 < (model.embed.weight[row] - mean).abs().max() < 0.1 * old.abs().max()
    with torch.no_grad():
        same(model(tokens)[..., kept], before[..., kept])
    model(tokens).sum().backward()
    assert model.embed.weight.grad is not None


def test_more_tokens_in_use_than_rows():
    with pytest.raises(ValueError, match="41 tokens are in use, but the embedding has 40 rows"):
        add_mask(network(replace(PLAIN, mask_id=-1)), used=41)


def test_half_precision_keeps_rotary_angles_exact(tokens):
    model = network(PLAIN)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.freq.dtype == torch.float32
    with torch.no_grad():
        assert (half(tokens).float() - model(tokens)).abs().mean() < 0.2
