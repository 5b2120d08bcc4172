"""The sampling loop: decoders, caches, canvases and both drivers against each other and against plain code."""

from __future__ import annotations

import pytest
import torch
from models import MASK, gapped, prompts, tiny

from unveil import rules, spec
from unveil.attention import FULL
from unveil.caches.causal import Causal
from unveil.caches.dual import Dual
from unveil.caches.prefix import Prefix
from unveil.canvas import Canvas
from unveil.context import Context, Store, Window
from unveil.decoders.random import Random
from unveil.decoders.threshold import Threshold
from unveil.prediction import Prediction, nucleus
from unveil.sample import denoise, fill, generate, prepare
from unveil.together import together

DECODERS = ["confidence", "confidence(temperature=0.8, top_p=0.9)", "margin", "entropy", "threshold(tau=0.3)", "random"]
MODELS = [("full", None, False), ("full", None, True), ("block", 4, False), ("block", 4, True), ("leader", 4, True)]
CACHES = ["recompute", "dual", "prefix", "dual(refresh=2)", "causal"]


def allowed(kind: str, cache: str) -> bool:
    return cache == "recompute" or (cache == "causal") == (kind != "full")


@pytest.mark.parametrize("kind", MODELS, ids=str)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_everything_composes_or_is_refused(kind, cache, decoder):
    model, given = tiny(kind[0], kind[1], shifted=kind[2]), prompts()
    if not allowed(kind[0], cache):
        with pytest.raises(ValueError, match="cache"):
            generate(model, given, 12, decoder, cache=cache, block=4)
        return
    out = generate(model, given, 12, decoder, cache=cache, block=4, seed=1)
    assert out.shape == (3, 18)
    assert (out != MASK).all()
    assert (out[:, :6] == given).all()
    assert (generate(model, given, 12, decoder, cache=cache, block=4, seed=1) == out).all()


@pytest.mark.parametrize("kind", MODELS, ids=str)
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_batch_of_unequal_rows_writes_what_each_row_writes_alone(kind, decoder):
    model = tiny(kind[0], kind[1], shifted=kind[2])
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5, 6)]
    caches = [c for c in CACHES if allowed(kind[0], c)]
    for cache in caches:
        batch = generate(model, given, 10, decoder, cache=cache, block=4, seed=3)
        for row, prompt in enumerate(given):
            alone = generate(model, [prompt], 10, decoder, cache=cache, block=4, seed=3 + row)[0]
            assert (batch[row, : len(alone)] == alone).all(), (cache, row)


@pytest.mark.parametrize("kind", MODELS, ids=str)
def test_together_writes_what_each_canvas_writes_alone(kind):
    model = tiny(kind[0], kind[1], shifted=kind[2])
    wishes = [("confidence", 4, 6), ("threshold(tau=0.3)", 4, 9), ("random", 4, 4), ("entropy", 8, 6)]
    cache = "dual" if kind[0] == "full" else "causal"

    def canvas(number: int, length: int) -> Canvas:
        return Canvas.answering(prompts(1 + number % 2, length, number), 8, MASK, torch.arange(2)[: 1 + number % 2])

    alone = [generate_on(model, canvas(i, n), d, cache, b) for i, (d, b, n) in enumerate(wishes)]
    crowd = [canvas(i, n) for i, (d, b, n) in enumerate(wishes)]
    jobs = [(c, prepare(model, c, d, cache=cache, block=b)) for c, (d, b, n) in zip(crowd, wishes, strict=True)]
    rounds = list(together(model, jobs))
    assert rounds[-1] == []
    for one, other in zip(alone, crowd, strict=True):
        assert (one == other.tokens).all()


def generate_on(model, canvas, decoder, cache, block):
    for _ in denoise(model, canvas, decoder, cache=cache, block=block):
        pass
    return canvas.tokens


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("cache", [Dual, Prefix])
def test_a_cache_refreshed_every_step_changes_nothing(cache, shifted):
    model, differs = tiny(shifted=shifted), 0
    for seed in range(5):
        given = prompts(seed=seed)
        plain = generate(model, given, 12, block=4)
        assert (generate(model, given, 12, cache=cache(refresh=1), block=4) == plain).all()
        differs += int((generate(model, given, 12, cache=cache(), block=4) != plain).any())
    assert differs, "the approximation never changed a token: the test proves nothing"


@pytest.mark.parametrize(("kind", "shifted"), [("leader", True), ("block", False), ("causal", True)])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_causal_cache_is_exact_at_every_step(kind, shifted, ragged):
    model = tiny(kind, 4, shifted=shifted)
    rows = [prompts(1, 3 + (n if ragged else 0), seed=n)[0] for n in range(4)]
    block = 1 if kind == "causal" else 4
    fast, slow = (
        [c.tokens.clone() for c in denoise(model, Canvas.answering(rows, 11, MASK), cache=cache, block=block)]
        for cache in ("causal", "recompute")
    )
    assert len(fast) == len(slow)
    assert all((a == b).all() for a, b in zip(fast, slow, strict=True))


def test_blocks_of_one_are_autoregressive_decoding():
    model = tiny("leader", 4, shifted=True)
    given = prompts()
    tokens = given
    for _ in range(7):
        logits = model.model(tokens, Context(rule=rules.causal))[:, -1]
        logits[:, MASK] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    canvas = Canvas.answering(given, 7, MASK)
    forwards = sum(1 for _ in denoise(model, canvas, cache="causal", block=1))
    assert forwards == 7
    assert (canvas.tokens == tokens).all()


def test_a_block_of_one_on_a_full_model_is_left_to_right_unmasking():
    model, given = tiny(), prompts()
    tokens = torch.cat([given, torch.full((3, 5), MASK)], 1)
    for at in range(6, 11):
        logits = model(tokens)[:, at]
        logits[:, MASK] = -torch.inf
        tokens[:, at] = logits.argmax(-1)
    assert (generate(model, given, 5, block=1) == tokens).all()


def test_confidence_commits_lladas_quota():
    model = tiny()
    canvas = Canvas.answering(prompts(2), 10, MASK)
    left = [int((c.tokens == MASK).sum(1)[0]) for c in denoise(model, canvas, "confidence", steps=4)]
    assert left == [7, 4, 2, 0]  # 10 = 3 + 3 + 2 + 2


def reference_llada(model, prompt, length, steps):
    """LLaDA's sampler in one block, written plainly: quotas fixed in advance, confidences in float64."""
    x = torch.cat([prompt, torch.full((1, length), MASK)], 1)
    share = [length // steps + (i < length % steps) for i in range(steps)]
    for count in share:
        logits = model(x).double()
        logits[..., MASK] = -torch.inf
        p, token = logits.softmax(-1).max(-1)
        p[x != MASK] = -1
        at = p[0].topk(count).indices
        x[0, at] = token[0, at]
    return x


def test_confidence_equals_llada_written_plainly():
    for seed in range(10):
        model, given = tiny(seed=seed), prompts(1, seed=seed)
        assert (generate(model, given, 9, steps=4) == reference_llada(model, given, 9, 4)).all()


def fake_prediction(p: list[float]) -> tuple[Canvas, Prediction]:
    """A canvas of blanks on which token 0 has the given probabilities."""
    canvas = Canvas.filling(torch.full((1, len(p)), MASK), MASK, torch.zeros(1, dtype=torch.long))
    canvas.window = canvas.block = Window(0, len(p))
    canvas.budget = len(p)
    rows = torch.tensor(p, dtype=torch.float64)
    logits = torch.full((len(p), 16), -torch.inf, dtype=torch.float64)
    logits[:, 0], logits[:, 1] = rows.log(), (1 - rows).log()
    return canvas, Prediction(logits.float(), torch.arange(len(p)), canvas)


def test_threshold_unit_vector():
    canvas, seen = fake_prediction([0.98, 0.95, 0.90001, 0.60])
    assert (Threshold(tau=0.9).write(canvas, seen) != MASK).tolist() == [[True, True, True, False]]
    assert (Threshold(tau=0.99).write(canvas, seen) != MASK).tolist() == [[True, False, False, False]]


def test_statistics_against_plain_softmax():
    torch.manual_seed(0)
    logits = torch.randn(5, 16) * 3
    canvas = Canvas.filling(torch.full((1, 5), MASK), MASK)
    canvas.window = Window(0, 5)
    seen = Prediction(logits.clone(), torch.arange(5), canvas)
    p = logits.double().index_fill(1, torch.tensor([MASK]), -torch.inf).softmax(-1)
    best = p.topk(2).values
    torch.testing.assert_close(seen.confidence[0].double(), best[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.margin[0].double(), best[:, 0] - best[:, 1], atol=1e-6, rtol=0)
    plain = -(p * p.clamp_min(1e-300).log()).sum(-1)
    torch.testing.assert_close(seen.entropy[0].double(), plain, atol=1e-6, rtol=0)


def test_draws_follow_the_tempered_nucleus():
    torch.manual_seed(0)
    row = torch.randn(16)
    many = 40_000
    canvas = Canvas.filling(torch.full((1, many), MASK), MASK, torch.zeros(1, dtype=torch.long))
    canvas.window = Window(0, many)
    token, _ = Prediction(row.repeat(many, 1), torch.arange(many), canvas).choose(0.7, 0.8)
    logits = row.double().index_fill(0, torch.tensor([MASK]), -torch.inf) / 0.7
    p = nucleus(logits.softmax(-1)[None], 0.8)[0]
    expected = p / p.sum()
    observed = torch.bincount(token[0], minlength=16).double() / many
    assert (observed[expected == 0] == 0).all()
    assert (observed - expected).abs().max() < 0.012


def test_random_reveals_each_blank_at_a_uniform_step():
    model, counts = tiny(), torch.zeros(4)
    for _, canvas in zip(range(1), [Canvas.answering(prompts(400), 6, MASK, torch.arange(400))], strict=True):
        before = 6
        for done in denoise(model, canvas, "random", steps=4):
            left = (done.tokens == MASK).sum(1).float().mean()
            counts[done.step - 1] = before - left
            before = float(left)
    # A row skips its empty steps, so early forwards reveal at least as much as 6 / 4 on average.
    assert counts.sum() == pytest.approx(6)
    assert counts[0] >= 1.5


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_random_draws_every_token_of_a_leader_block(steps):
    class Watched(Random):
        def write(self, canvas, seen):
            written = super().write(canvas, seen)
            if canvas.step == canvas.budget - 1:  # nothing may be left for the loop to settle by the likeliest token
                assert (written[canvas.open] != MASK).all()
            return written

    generate(tiny("leader", 5, shifted=True), prompts(64), 10, Watched(), cache="causal", block=5, steps=steps, seed=0)


def test_filling_keeps_what_is_given_and_fills_several_blanks():
    model = tiny()
    rows = [prompts(1, 12, seed=n)[0] for n in range(3)]
    for n, row in enumerate(rows):
        row[2 + n : 5] = MASK
        row[8 : 9 + n] = MASK
    for cache in ("recompute", "dual", "prefix"):
        for row, out in zip(rows, fill(model, rows, "threshold", cache=cache, block=4), strict=True):
            assert (out[row != MASK] == row[row != MASK]).all()
            assert (out != MASK).all()


def test_a_leader_model_fills_with_both_sides_in_view():
    model = tiny("leader", 4, shifted=True)
    row = prompts(1, 10)[0]
    row[4:6] = MASK
    other = row.clone()
    other[8] = (other[8] + 1) % MASK
    views = [model(r[None], Context())[0, 4] for r in (row, other)]
    assert not torch.equal(*views)
    assert torch.equal(fill(model, [row])[0], fill(model, [row], attention=FULL)[0])


def test_empty_prompt_one_step_and_many_steps():
    model = tiny("leader", 4, shifted=True)
    nothing = torch.zeros(2, 0, dtype=torch.long)
    assert generate(model, nothing, 8, block=4, seed=0).shape == (2, 8)
    assert (generate(tiny(), prompts(), 8, steps=1) != MASK).all()
    assert (generate(tiny(), prompts(), 8, steps=50) == generate(tiny(), prompts(), 8)).all()
    model.bos_id = None
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(model, nothing, 8)


def test_block_models_decode_in_multiples_of_their_block():
    model, given = tiny("block", 4), prompts(1, 5)
    for block in (4, 8):
        caches = [generate(model, given, 11, cache=cache, block=block) for cache in ("causal", "recompute")]
        assert torch.equal(*caches)
    with pytest.raises(ValueError, match="block is 6; a model trained in blocks of 4"):
        generate(model, given, 11, block=6)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("steps", [None, 3])
def test_rows_with_unequal_rests_are_filled_as_alone(decoder, steps):
    model = tiny()
    rows = gapped()
    batch = fill(model, rows, decoder, block=5, steps=steps, seed=4)
    for n, row in enumerate(rows):
        assert torch.equal(batch[n], fill(model, [row], decoder, block=5, steps=steps, seed=4 + n)[0])


def test_threshold_of_one_is_one_token_a_step():
    model, given = tiny(), prompts(1)
    steps = sum(1 for _ in denoise(model, Canvas.answering(given, 9, MASK), "threshold(tau=1.1)"))
    assert steps == 9
    assert (generate(model, given, 9, "threshold(tau=1.1)") == generate(model, given, 9, "confidence")).all()


def test_window_equals_slice_of_whole_with_unequal_starts():
    model, tokens = tiny(), prompts(3, 12)
    whole, store = model(tokens, Context(Window(0, 12), store=(kept := Store(12)))), kept
    starts = torch.tensor([2, 5, 7])
    part = model(tokens, Context(Window.of(starts, 4), store=store))
    for row, start in enumerate(starts.tolist()):
        torch.testing.assert_close(part[row], whole[row, start : start + 4], atol=1e-5, rtol=1e-5)


def test_one_block_prediction_reads_only_what_is_open():
    model, reads = tiny(), []
    original = model.forward
    model.forward = lambda tokens, ctx: (reads.append(len(ctx.read)), original(tokens, ctx))[1]
    generate(model, prompts(2), 6, block=3)
    assert reads == [6, 4, 2, 6, 4, 2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: generate(m, prompts(), 0), "length is 0"),
        (lambda m: generate(m, prompts(), 4, "psychic"), "no decoder called 'psychic'.*confidence"),
        (lambda m: generate(m, prompts(), 4, "threshold(theta=1)"), "no option 'theta'.*tau"),
        (lambda m: generate(m, prompts(), 4, "threshold(temperature=-1)"), "temperature is -1"),
        (lambda m: generate(m, prompts(), 4, cache="bottomless"), "no cache called 'bottomless'.*recompute"),
        (lambda m: generate(m, prompts(), 4, cache="causal"), "causal cache.*full attention"),
        (lambda m: generate(m, prompts(), 4, block=0), "block is 0"),
        (lambda m: generate(m, prompts(), 4, steps=0), "steps is 0"),
        (lambda m: generate(m, prompts(), 4, seed=[1]), "1 seeds for 3 rows"),
        (lambda m: fill(m, prompts()), "at least one blank"),
        (lambda m: spec.build("decoders", "threshold(0.9)"), "expected name"),
        (lambda m: spec.build("decoders", "threshold(tau=x)"), "needs a number"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(tiny())


def test_a_prompt_longer_than_the_context_is_refused():
    model = tiny()
    model.context_length = 8
    with pytest.raises(ValueError, match="take 10 positions together; the model's context holds 8"):
        generate(model, prompts(), 4)


def test_a_decoder_that_looks_ahead_is_refused_where_nothing_is_ahead():
    class Farsighted(Threshold):
        ahead = True

    with pytest.raises(ValueError, match="beyond the block"):
        generate(tiny(), prompts(), 8, Farsighted(), cache=Dual(), block=4)
    with pytest.raises(ValueError, match="beyond the block"):
        generate(tiny("leader", 4, shifted=True), prompts(), 8, Farsighted(), cache=Causal(), block=4)


def test_noise_ignores_everything_but_its_key():
    from unveil.noise import uniform

    u = uniform(torch.arange(3)[:, None], 5, torch.arange(1000))
    assert torch.equal(u[1], uniform(1, 5, torch.arange(1000)))
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("decoder", ["confidence", "threshold(tau=0.3)", "klass", "ahd", "prophet", "saber", "wino"])
def test_logits_are_never_asked_for_the_prompt(decoder):
    most = []
    for size in (4, 40):
        model, read = tiny("full"), []
        model.register_forward_hook(lambda network, given, logits, read=read: read.append(len(logits)))
        generate(model, prompts(1, size), 12, decoder, block=4)
        most.append(max(read))
    assert most[0] == most[1] <= 12 + 4
