"""Self-speculative decoding: token for token greedy, and in distribution, what autoregressive decoding writes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from models import MASK, prompts, tiny

from unveil import rules
from unveil.attention import Attention
from unveil.canvas import Canvas
from unveil.context import EVERYTHING, Context
from unveil.decoders.speculative import Speculative
from unveil.denoiser import Denoiser
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Shape, Transformer
from unveil.prediction import nucleus
from unveil.sample import denoise, fill, generate, prepare
from unveil.together import together


class Table(Denoiser):
    """Logits that depend on the position alone: every draft is as good as its verification."""

    def __init__(self, positions: int):
        super().__init__()
        self.mask_id, self.attention, self.shifted = MASK, Attention("leader", 5), True
        self.table = torch.randn(positions, MASK + 1, generator=torch.Generator().manual_seed(0))

    def forward(self, tokens, ctx=EVERYTHING):
        assert ctx.read is not None
        places = ctx.over(tokens.shape[1]).positions(tokens.device).expand(len(tokens), -1).reshape(-1)
        return self.table[places[ctx.read]]


def small(vocab: int, block: int, seed: int = 1, sharp: float = 20.0):
    """A leader model of `vocab` tokens and a mask, whose drafts are often wrong."""
    torch.manual_seed(seed)
    shape = Shape(vocab=vocab + 1, width=16, layers=2, heads=2, kv_heads=2, hidden=32, head_size=8, mask_id=vocab)
    model = Transformer(shape).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(sharp)
    model.attention = Attention("leader", block)
    return Shifted(model).eval()


def probabilities(model, prompt, length, vocab, temperature, top_p):
    """Every text of `length` tokens, (V ** length, length), and its exact autoregressive probability."""
    texts = torch.tensor(list(product(range(vocab), repeat=length)))
    tokens = torch.cat([prompt.expand(len(texts), -1), texts], 1)
    logits = model.model(tokens, Context(rule=rules.causal))[:, len(prompt) - 1 : -1].double()
    logits[..., vocab] = -torch.inf
    p = (logits / temperature).softmax(-1)
    p = nucleus(p.flatten(0, 1), top_p).view_as(p)
    p = p / p.sum(-1, keepdim=True)
    return texts, p.gather(-1, texts[..., None])[..., 0].prod(-1)


def fit(found, texts, expected, vocab):
    """The p-value of Pearson's chi-squared test; texts expected fewer than 5 times are counted together."""
    places = vocab ** torch.arange(texts.shape[1] - 1, -1, -1)
    seen = torch.bincount((found * places).sum(1), minlength=len(texts)).double()
    wanted, rare = expected * len(found), expected * len(found) < 5
    assert not seen[expected == 0].any(), "a text was written that has no probability"
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    wanted = torch.cat([wanted[~rare], wanted[rare].sum()[None]])
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2).double(), statistic / 2))


class Credulous(Speculative):
    def agrees(self, seen, drafted):
        return torch.ones_like(drafted, dtype=torch.bool)


class Careless(Speculative):
    """Draws what stands in for a draft from p, where it should be from what p has more of than q."""

    def chosen(self, seen, drafted, last):
        token = super().chosen(seen, drafted[:0], last)
        if len(drafted):
            token[drafted] = torch.where(last[drafted], token[drafted], self.drafts)
        return token


CASES = [(4, 4, 2, None, 1.0, 1.0), (4, 4, 3, None, 0.7, 0.8), (3, 6, 3, None, 1.5, 1.0), (3, 6, 0, 4, 1.0, 0.9)]


@pytest.mark.parametrize(("vocab", "length", "n", "block", "temperature", "top_p"), CASES, ids=str)
def test_what_is_drawn_has_the_autoregressive_distribution(vocab, length, n, block, temperature, top_p):
    model, prompt = small(vocab, 4), torch.tensor([1, 0, 2])
    with torch.inference_mode():
        texts, expected = probabilities(model, prompt, length, vocab, temperature, top_p)
    levels = {}
    for kind, many in ((Speculative, 6000), (Credulous, 1000), (Careless, 3000)):
        decoder = kind(n, temperature=temperature, top_p=top_p)
        out = generate(model, prompt.expand(many, -1), length, decoder, cache="causal", block=block, seed=0)
        if kind is Credulous:  # the nucleus of the drafts reaches beyond that of the texts
            expected = expected.clamp_min(1e-9)
        levels[kind] = fit(out[:, len(prompt) :], texts, expected, vocab)
        if kind is Speculative:
            share = float(decoder.accepted.sum() / decoder.offered.sum())
            assert 0.1 < share < 0.9, "drafts are all right or all wrong: the test proves nothing"
    assert levels[Speculative] > 1e-3
    assert levels[Credulous] < 1e-6
    assert levels[Careless] < 1e-6


@pytest.mark.parametrize("n", [0, 1, 2, 3, 40])
@pytest.mark.parametrize("block", [None, 6])
def test_at_temperature_0_it_is_greedy_autoregressive_decoding(n, block):
    for seed in range(3):
        model = tiny("leader", 5, shifted=True, seed=seed, sharp=4.0 + 8 * seed)
        given = [prompts(1, length, seed=length + seed)[0] for length in (2, 7, 5)]
        plain = generate(model, given, 11, cache="causal", block=1)
        for cache in ("causal", "recompute"):
            assert torch.equal(generate(model, given, 11, Speculative(n), cache=cache, block=block), plain), cache


@pytest.mark.parametrize("spec", ["speculative(temperature=0.8)", "speculative(n=3, temperature=1.2, top_p=0.9)"])
def test_rows_depend_neither_on_their_company_nor_on_the_cache(spec):
    model = tiny("leader", 5, shifted=True, sharp=6.0)
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    for block in (None, 4):
        batch = generate(model, given, 10, spec, cache="causal", block=block, seed=3)
        assert torch.equal(generate(model, given, 10, spec, cache="recompute", block=block, seed=3), batch)
        for row, prompt in enumerate(given):
            alone = generate(model, [prompt], 10, spec, cache="causal", block=block, seed=3 + row)[0]
            assert torch.equal(batch[row, : len(alone)], alone)


def test_rows_of_unequal_rests_write_what_each_writes_alone():
    model = tiny("leader", 5, shifted=True, sharp=6.0)
    rows = [torch.cat([prompts(1, n, n)[0], torch.full((rest,), MASK)]) for n, rest in ((3, 9), (6, 1), (2, 4))]
    for spec in ("speculative", "speculative(temperature=1)"):
        for block in (None, 3):
            batch = fill(model, rows, spec, cache="causal", block=block, seed=5, attention=model.attention)
            for index, row in enumerate(rows):
                seed, attention = 5 + index, model.attention
                alone = fill(model, [row], spec, cache="causal", block=block, seed=seed, attention=attention)[0]
                assert torch.equal(batch[index], alone)


def test_a_canvas_holds_nothing_that_is_not_verified():
    model = tiny("leader", 5, shifted=True, sharp=6.0)
    given = [prompts(1, n, seed=n)[0] for n in (3, 5)]
    before, wrote = None, set()
    for canvas in denoise(model, Canvas.answering(given, 12, MASK, torch.arange(2)), "speculative(temperature=0.5)"):
        for row, first in zip(canvas.rows(), canvas.first.tolist(), strict=True):
            blank = row[first:] == MASK
            assert torch.equal(blank, blank.sort(stable=True).values), "something is written behind a blank"
        if before is not None:
            kept = before != MASK
            assert torch.equal(canvas.tokens[kept], before[kept]), "something was taken back"
            wrote |= set(((before == MASK) & (canvas.tokens != MASK)).sum(1).tolist())
        before = canvas.tokens.clone()
    assert max(wrote) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_that_are_right_cost_two_passes_for_all_of_them(temperature):
    # The leader; twice two passes for 4 drafts and 1 token; then 2 blanks, where a draft would save nothing.
    canvas = Canvas.answering(prompts(3, 4), 13, MASK, torch.arange(3))
    steps = sum(1 for _ in denoise(Table(20), canvas, Speculative(temperature=temperature), cache="causal"))
    assert (steps, canvas.forwards) == (5, 1 + 2 + 2 + 1 + 1)
    alone = Speculative(1, temperature=temperature)
    canvas = Canvas.answering(prompts(1, 4), 13, MASK, torch.arange(1))
    assert sum(1 for _ in denoise(Table(20), canvas, alone, cache="causal")) == canvas.forwards == 13


def test_every_pass_is_counted_and_none_is_wider_than_its_drafts():
    model, seen = tiny("leader", 5, shifted=True, sharp=6.0), []
    forward = model.forward

    def watched(tokens, ctx=EVERYTHING):
        seen.append((ctx.over(tokens.shape[1]).width, len(ctx.read) if ctx.read is not None else 0))
        return forward(tokens, ctx)

    model.forward = watched
    canvas, decoder = Canvas.answering(prompts(1, 4), 20, MASK), Speculative()
    for _ in denoise(model, canvas, decoder, cache="causal"):
        pass
    assert canvas.forwards == len(seen) < 40
    assert seen[0] == (5, 1)
    assert all(width <= 6 and read <= 5 for width, read in seen[1:])
    assert 0 <= int(decoder.accepted) <= int(decoder.offered)


def test_together_writes_what_each_canvas_writes_alone():
    model = tiny("leader", 5, shifted=True, sharp=6.0)
    wishes = [("speculative", 4), ("speculative(n=2, temperature=1)", 7), ("threshold(tau=0.3)", 5)]

    def canvas(number: int, length: int) -> Canvas:
        return Canvas.answering(prompts(2, length, number), 9, MASK, torch.arange(2) + number)

    alone = [canvas(number, length) for number, (_, length) in enumerate(wishes)]
    for each, (decoder, _) in zip(alone, wishes, strict=True):
        for _ in denoise(model, each, decoder, cache="causal"):
            pass
    crowd = [canvas(number, length) for number, (_, length) in enumerate(wishes)]
    jobs = [(c, prepare(model, c, d, cache="causal")) for c, (d, _) in zip(crowd, wishes, strict=True)]
    assert list(together(model, jobs))[-1] == []
    for one, other in zip(alone, crowd, strict=True):
        assert torch.equal(one.tokens, other.tokens)


def holed() -> torch.Tensor:
    row = prompts(1, 9)[0]
    row[[3, 4, 7, 8]] = MASK
    return row


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: generate(tiny(), prompts(), 4, "speculative"), "leader model, and here .* full attention"),
        (
            lambda m: generate(tiny("block", 4), prompts(), 4, "speculative"),
            "leader model, and here .* block attention",
        ),
        (lambda m: fill(m, [holed()], "speculative"), "leader model, and here .* full attention"),
        (lambda m: fill(m, [holed()], "speculative", attention=m.attention), "given token stands behind a blank"),
        (lambda m: generate(m, prompts(), 9, "speculative", steps=3), "steps is 3, and speculative may need .* 9"),
        (lambda m: generate(m, prompts(), 9, "speculative(n=-1)"), "n is -1"),
        (
            lambda m: generate(tiny("leader", None, shifted=True), prompts(), 9, "speculative"),
            r"no trained block.*speculative\(n=8\)",
        ),
    ],
)
def test_what_it_refuses_is_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(tiny("leader", 5, shifted=True))
