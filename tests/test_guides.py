"""Guides against plain code: ends of text, guidance by a second look, and the keys and values that look keeps."""

from __future__ import annotations

import pytest
import torch
from models import MASK, prompts, tiny

from unveil import spec
from unveil.canvas import Canvas
from unveil.context import Context, Store, Window
from unveil.decoders.confidence import Confidence
from unveil.denoiser import Denoiser
from unveil.guidance import Second, contrast
from unveil.guides.eos import shared_out
from unveil.sample import denoise, fill, generate, prepare
from unveil.together import together

END = 3


class Ending(Denoiser):
    """A tiny model that sees the end of the text in every position from `since` on."""

    def __init__(self, kind: str = "full", block: int | None = None, shifted: bool = False, since: int = 0):
        super().__init__()
        self.model, self.since = tiny(kind, block, shifted=shifted), since
        self.mask_id, self.attention, self.shifted, self.eos_id = MASK, self.model.attention, shifted, END

    def forward(self, tokens, ctx):
        logits = self.model(tokens, ctx).clone()
        place = ctx.window.positions(tokens.device).expand(len(tokens), -1).reshape(-1)[ctx.read]
        logits[:, END] += torch.where(place >= self.since, 5e4, -5e4)
        return logits


def run(model, canvas, decoder="confidence", **options) -> list[torch.Tensor]:
    """The canvas after every step."""
    return [c.tokens.clone() for c in denoise(model, canvas, decoder, **options)]


def answering(rows=3, length=9, prompt=5):
    return Canvas.answering(prompts(rows, prompt), length, MASK, torch.arange(rows))


@pytest.mark.parametrize(
    ("kind", "block", "shifted"), [("full", None, False), ("block", 4, False), ("leader", 4, True)]
)
def test_no_text_ends_when_it_never_may(kind, block, shifted):
    canvas = answering()
    run(Ending(kind, block, shifted), canvas, "threshold(tau=0.2)", guide="eos(policy='never')", block=4)
    assert not (canvas.tokens[~canvas.given] == END).any()
    assert not (canvas.tokens == MASK).any()


@pytest.mark.parametrize(
    ("kind", "block", "shifted"), [("full", None, False), ("block", 4, False), ("leader", 4, True)]
)
@pytest.mark.parametrize("policy", ["hold", "stop"])
def test_ends_are_decided_from_left_to_right(policy, kind, block, shifted):
    model, canvas = Ending(kind, block, shifted, since=8), answering()
    canvas.tokens[:, 1] = END  # one in the prompt is no end of the answer
    before, ended = canvas.tokens.clone(), False
    for now in run(model, canvas, "threshold(tau=0.3)", guide=f"eos(policy={policy!r})", block=4):
        for row in range(3):
            for at in ((now[row] == END) & (before[row] != END)).nonzero()[:, 0].tolist():
                written = bool((before[row, :at] != MASK).all())
                assert written or (now[row, 5:at] == END).any()
                ended = True
        before = now
    assert ended
    assert (before[:, 8:] == END).all()
    assert not (before[:, 5:8] == END).any()


def test_an_early_end_makes_a_position_look_undecided():
    logits = torch.tensor([[9.0, 0.0, 2.0, 1.0, -torch.inf, 5.0]])
    p = logits[:, :5].double().softmax(-1)[0]
    found = shared_out(logits.clone(), 0, 5)
    q = found.double().softmax(-1)[0]
    assert q[[0, 4, 5]].tolist() == [0, 0, 0]
    assert q.argmax() == 2
    parts = torch.tensor([0, 4, 6, 5, 0, 0]).double() / 21  # six are ranked; what is impossible gains nothing
    expected = torch.cat([p, p.new_zeros(1)]).index_fill(0, torch.tensor([0]), 0.0) + parts * p[0]
    torch.testing.assert_close(q, expected / expected.sum())


def test_without_the_guide_the_end_comes_first():
    first = run(Ending(since=8), answering(), "threshold(tau=0.9)")[0]
    assert (first[:, 8:] == END).all()
    assert (first == MASK).any()


def test_a_stopped_row_takes_no_further_pass():
    model = Ending(since=8)
    hold, stop = answering(1), answering(1)
    run(model, hold, guide="eos", block=3)
    run(model, stop, guide="eos(policy='stop')", block=3)
    assert torch.equal(hold.tokens, stop.tokens)
    assert hold.forwards == 9
    assert stop.forwards == 4


def test_an_end_fills_its_own_gap_and_no_other():
    row = prompts(1, 12, seed=4)[0]
    row[2:6], row[8:11] = MASK, MASK
    model = Ending(since=0)
    canvas = Canvas.filling([row], MASK, torch.zeros(1, dtype=torch.long))
    first = run(model, canvas, guide="eos(policy='stop')", block=4)[0]
    assert (first[0, 2:6] == END).all()
    assert (first[0, 8:11] == MASK).all()


@pytest.mark.parametrize("guide", ["eos", "eos(policy='stop')", "unconditional", "unconditional(inner='eos')"])
@pytest.mark.parametrize(
    ("kind", "block", "shifted", "cache"), [("full", None, True, "dual"), ("block", 4, False, "causal")]
)
def test_rows_do_not_depend_on_their_company(guide, kind, block, shifted, cache):
    model = Ending(kind, block, shifted, since=9)
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    batch = generate(model, given, 9, cache=cache, block=4, guide=guide, seed=3)
    for row, prompt in enumerate(given):
        alone = generate(model, [prompt], 9, cache=cache, block=4, guide=guide, seed=3 + row)[0]
        assert torch.equal(batch[row, : len(alone)], alone)


def test_together_serves_second_looks():
    model = Ending(since=9)
    guides = ["unconditional", "eos", "unconditional(inner='eos', scale=2)", None]
    alone = [answering(1, 8, 4 + n) for n in range(4)]
    crowd = [answering(1, 8, 4 + n) for n in range(4)]
    for canvas, guide in zip(alone, guides, strict=True):
        run(model, canvas, cache="dual", block=4, guide=guide)
    jobs = [(c, prepare(model, c, cache="dual", block=4, guide=g)) for c, g in zip(crowd, guides, strict=True)]
    list(together(model, jobs))
    for one, other in zip(alone, crowd, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert one.forwards == other.forwards


def test_contrast_against_its_formula():
    torch.manual_seed(0)
    strong, weak = torch.randn(6, 12) * 3, torch.randn(6, 12) * 3
    plain = weak + 1.5 * (strong - weak)
    torch.testing.assert_close(contrast(strong.clone(), weak, 0.5), plain)
    rows = torch.tensor([True, False] * 3)
    some = contrast(strong.clone(), weak, 0.5, 0.1, rows)
    assert torch.equal(some[~rows], strong[~rows])
    p = strong.softmax(-1)
    plausible = p >= 0.1 * p.amax(-1, keepdim=True)
    expected = plain.masked_fill(~plausible, -torch.inf).softmax(-1)
    torch.testing.assert_close(some[rows].softmax(-1), expected[rows])
    assert some.isfinite().all()


def test_contrast_keeps_what_is_forbidden_and_leaves_a_way_out():
    strong = torch.tensor([[9.0, 1.0, 0.0, -torch.inf]])
    weak = torch.tensor([[0.0, 200.0, 0.0, -torch.inf]])
    found = contrast(strong.clone(), weak, 1.0, 0.1)
    assert found[0, 3] == -torch.inf
    assert found.argmax() == 0
    found[0, 0] = -torch.inf  # who forbids the only plausible token finds the next best
    assert found.argmax() == 1
    assert not found.isnan().any()


def reference_guided(model, prompt, length, scale):
    """LLaDA's sampler with its classifier-free guidance, written plainly: a batch of two, one token a step."""
    x = torch.cat([prompt, torch.full((1, length), MASK)], 1)
    asked = x != MASK
    for _ in range(length):
        both = torch.cat([x, torch.where(asked, MASK, x)])
        given, free = model(both).chunk(2)
        logits = free + (scale + 1) * (given - free)
        logits[..., MASK] = -torch.inf
        p, token = logits.softmax(-1).max(-1)
        p[x != MASK] = -1
        at = p[0].argmax()
        x[0, at] = token[0, at]
    return x


@pytest.mark.parametrize("shifted", [False, True])
def test_unconditional_equals_llada_written_plainly(shifted):
    differs = 0
    for seed in range(4):
        model, given = tiny(seed=seed, shifted=shifted), prompts(1, seed=seed)
        with torch.inference_mode():
            expected = reference_guided(model, given, 7, 1.5)
        assert torch.equal(generate(model, given, 7, guide="unconditional(scale=1.5)"), expected)
        differs += int((generate(model, given, 7) != expected).any())
    assert differs, "guidance never changed a token: the test proves nothing"


def test_no_scale_is_no_second_pass():
    model, plain, guided = tiny(), answering(), answering()
    steps = run(model, plain, block=4), run(model, guided, block=4, guide="unconditional(scale=0)")
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
    assert plain.forwards == guided.forwards
    doubled = answering()
    run(model, doubled, block=4, guide="unconditional")
    assert doubled.forwards == 2 * plain.forwards
    nothing = Canvas.filling(torch.full((1, 5), MASK), MASK)
    run(model, nothing, guide="unconditional")
    assert nothing.forwards == 5  # without a prompt both looks are one


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("cache", ["dual(refresh=1)", "prefix(refresh=1)"])
def test_a_cache_refreshed_every_step_changes_nothing_under_guidance(cache, shifted):
    model, differs = tiny(shifted=shifted), 0
    for seed in range(3):
        given = prompts(seed=seed)
        plain = generate(model, given, 9, block=4, guide="unconditional")
        assert torch.equal(generate(model, given, 9, cache=cache, block=4, guide="unconditional"), plain)
        seldom = cache.replace("refresh=1", "")
        differs += int((generate(model, given, 9, cache=seldom, block=4, guide="unconditional") != plain).any())
    assert differs


@pytest.mark.parametrize("shifted", [False, True])
def test_the_causal_cache_is_exact_under_guidance(shifted):
    model = tiny("block", 4, shifted=shifted)
    given = [prompts(1, n, seed=n)[0] for n in (3, 6, 5)]
    fast, slow = (generate(model, given, 10, cache=c, block=4, guide="unconditional") for c in ("causal", "recompute"))
    assert torch.equal(fast, slow)


@pytest.mark.parametrize("cache", ["dual", "prefix", "dual(refresh=3)", "delayed"])
def test_a_second_look_is_what_a_first_look_at_the_same_text_would_be(cache):
    model, canvas, asked = tiny(), answering(), []
    original = model.forward

    def forward(tokens, ctx):
        logits = original(tokens, ctx)
        asked.append((tokens.clone(), ctx, logits.clone()))
        return logits

    model.forward = forward
    run(model, canvas, cache=cache, block=4, guide="unconditional")
    store = Store(canvas.tokens.shape[1])
    assert len({id(ctx.store) for _, ctx, _ in asked}) == 2
    for (_, first, _), (tokens, second, logits) in zip(asked[::2], asked[1::2], strict=True):
        assert (tokens[:, :5] == MASK).all()
        assert first.window is second.window
        again = Context(second.window, second.rule, store=store, read=second.read, stale=second.stale)
        with torch.inference_mode():
            torch.testing.assert_close(original(tokens, again), logits)


def test_a_row_that_rested_begins_again_from_the_first_look():
    canvas = answering(2, 8)
    canvas.enter(Window(5, 4), None)
    first, second = Store(13), Second(canvas)
    whole, part = Context(Window(0, 13), store=first), Context(canvas.block, store=first)
    both, one = torch.tensor([True, True]), torch.tensor([True, False])

    def fill_in(store: Store, window: Window, value: float):
        new = torch.full((2, 1, window.width, 1), value)
        store.merge(0, new, new, window)

    def level(at: int) -> list[float]:
        assert second.store is not None
        return second.store.kept[0][0][:, 0, at, 0].tolist()

    fill_in(first, Window(0, 13), 1.0)
    fill_in(second.beside(canvas, whole, both).store, Window(0, 13), 2.0)
    assert level(0) == [2, 2]
    fill_in(first, canvas.block, 3.0)
    second.beside(canvas, part, one)  # resting within a block loses nothing
    second.beside(canvas, part, both)
    assert level(0) == [2, 2]
    fill_in(first, Window(0, 13), 4.0)
    second.beside(canvas, whole, one)  # the second row rests while everything is computed anew
    second.beside(canvas, part, both)
    assert level(0) == [2, 4]


def test_guides_stand_around_each_other():
    model = Ending(since=0)
    inner = spec.build("guides", "unconditional(scale=2, inner='eos(policy=\"never\")')")
    assert [type(each).__name__ for each in inner.chain()] == ["Eos", "Unconditional"]
    outer = spec.build("guides", "eos(policy='never', inner='unconditional(scale=2)')")
    for guide in (inner, outer):
        out = generate(model, prompts(), 6, guide=guide)
        assert not (out[:, 6:] == END).any()


@pytest.mark.parametrize("decoder", ["threshold(tau=0.3)", "random", "margin"])
def test_given_tokens_stay_under_guidance(decoder):
    rows = [prompts(1, n, seed=n)[0] for n in (9, 12)]
    for n, row in enumerate(rows):
        row[3 + n : 6 + n] = MASK
        row[-1] = MASK
    model = Ending(since=5)
    for row, out in zip(
        rows, fill(model, rows, decoder, block=4, guide="eos(inner='unconditional')", seed=1), strict=True
    ):
        assert (out[row != MASK] == row[row != MASK]).all()
        assert (out != MASK).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m: generate(m, prompts(), 4, guide="eos(policy='late')"),
            "policy called 'late'; there are: never, hold",
        ),
        (lambda m: generate(m, prompts(), 4, guide="eos"), "names none"),
        (lambda m: generate(m, prompts(), 4, guide="unconditional(scale=-1)"), "scale is -1"),
        (lambda m: generate(m, prompts(), 4, guide="contrast(scale=-1)"), "scale is -1"),
        (lambda m: generate(m, prompts(), 4, guide="contrast(alpha=2)"), "alpha is 2"),
        (lambda m: generate(m, prompts(), 4, guide="psychic"), "no guide called 'psychic'; there are: contrast, eos"),
        (lambda m: generate(m, prompts(), 4, cache="features", guide="unconditional"), "use another cache"),
        (
            lambda m: generate(tiny("leader", 4, shifted=True), prompts(), 4, guide="unconditional"),
            "leader attention has never read a mask",
        ),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(tiny())


def test_a_leader_model_is_guided_where_it_sees_both_sides():
    model = tiny("leader", 4, shifted=True)
    row = prompts(1, 10)[0]
    row[4:7] = MASK
    assert (fill(model, [row], Confidence(), guide="unconditional")[0] != MASK).all()
