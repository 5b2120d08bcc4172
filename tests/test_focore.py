"""FoCore: drift, dense tokens and what is hidden, the base decoder with every rule off, and committing in parallel."""

from __future__ import annotations

import json
from math import log

import pytest
import torch
from models import MASK, prompts, tiny

from unveil.canvas import Canvas
from unveil.context import Context, Window
from unveil.decoders.focore import Drift, Focore, Pace, around, divergence, frequencies
from unveil.denoiser import Denoiser
from unveil.prediction import Prediction
from unveil.sample import denoise, fill, generate, prepare
from unveil.together import together

MODELS = [("full", None, False), ("full", None, True), ("block", 4, False), ("leader", 4, True)]
FULL_CACHES = ["recompute", "dual", "prefix", "dual(refresh=2)", "delayed(refresh=3)"]


class Settled(Denoiser):
    """Says the same of a position whatever stands elsewhere, so that every prediction converges at once."""

    def __init__(self, p: float):
        super().__init__()
        self.mask_id, self.p, self.eos_id = MASK, p, 0

    def forward(self, tokens, ctx):
        place = ctx.window.positions(tokens.device).expand(len(tokens), -1).reshape(-1)[ctx.read]
        p = torch.full((len(place), 16), (1 - self.p) / 14)
        p[torch.arange(len(place)), 1 + place % 13] = self.p
        return p.log()


def answering(rows: int = 2, length: int = 12, prompt: int = 4) -> Canvas:
    return Canvas.answering(prompts(rows, prompt), length, MASK, torch.arange(rows))


def test_divergence_against_plain_jensen_shannon():
    torch.manual_seed(0)
    full = torch.zeros(2, 5, 30, dtype=torch.float64)
    ids = torch.stack([torch.randperm(30)[:10] for _ in range(10)]).view(2, 5, 10)
    p = torch.rand(2, 5, 10, dtype=torch.float64).softmax(-1)
    full.scatter_(2, ids, p)
    mean = full.mean(0)
    plain = sum(torch.xlogy(each, each / mean.clamp_min(1e-300)).sum(-1) for each in full) / 2
    torch.testing.assert_close(divergence(ids[0], p[0], ids[1], p[1]), plain)
    torch.testing.assert_close(divergence(ids[0], p[0], ids[0], p[0]), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(divergence(ids[:1, 0], p[:1, 0], ids[:1, 0] + 30, p[1:, 0]).item(), log(2))


def test_drift_counts_predictions_that_agree():
    canvas = answering(1, 3, 2)
    canvas.window = Window(0, 5)
    drift, context = Drift(canvas, 0.02), Context(canvas.window, read=torch.tensor([2, 4]))
    logits = torch.randn(2, 16)
    other = logits.clone()
    other[1] = -other[1]
    for said, calm, same in [(logits, [0, 0], [0, 0]), (logits, [1, 1], [1, 1]), (other, [2, 0], [2, 0])]:
        drift.add(canvas, context, said)
        assert drift.calm[0, [2, 4]].tolist() == calm
        assert drift.same[0, [2, 4]].tolist() == same
    assert drift.moved[0, 3] == torch.inf
    assert drift.best[0].tolist() == [-1, -1, int(logits[0].argmax()), -1, int(other[1].argmax())]


def test_around():
    x = torch.tensor([[1, 0, 1, 1, 0, 1]]).bool()
    assert around(x, 1).tolist() == [[0, 2, 1, 1, 2, 0]]
    assert around(x, 2).tolist() == [[1, 3, 2, 2, 3, 1]]
    assert around(x, 9).tolist() == [[3, 4, 3, 3, 4, 3]]


def step_of(decoder: Focore, canvas: Canvas, surest: int) -> None:
    """One step in which the likeliest token, 5 or what stands, is surest at one position."""
    canvas.window = canvas.block
    read = canvas.reads(False, decoder.revises)
    logits = torch.zeros(len(read), 16)
    logits[:, 5] = torch.where(read == surest, 9.0, 3.0)
    canvas.taken += 1
    decoder.drift.add(canvas, Context(canvas.window, read=read), logits)
    canvas.write(decoder.write(canvas, Prediction(logits, read, canvas)))
    canvas.step += 1


def test_dense_are_the_earliest_isolated_informative_tokens():
    canvas = Canvas.filling(torch.full((1, 12), MASK), MASK, torch.zeros(1, dtype=torch.long))
    decoder = Focore(reach=2, rho=0.25, epsilon=0.0)  # nothing converges before it is written
    canvas.enter(Window(0, 12), None)
    decoder.begin(canvas)
    decoder.enter(canvas)
    seen = []
    for surest in (3, 4, 8, 2, 9):
        step_of(decoder, canvas, surest)
        seen.append(canvas.hidden[0].nonzero()[:, 0].tolist())
    # a: 3 and 8 stood alone when they were written, 4 and 9 beside one of four that was, 2 beside two
    torch.testing.assert_close(decoder.early[0, [3, 4, 8, 2, 9]], torch.tensor([1.0, 0.75, 1.0, 0.5, 0.75]))
    assert seen == [[3], [3], [3], [3], [3, 4]]  # ceil(c / 4), earliest first
    canvas.end = 5
    decoder.worth = None
    assert not decoder.densest(canvas, canvas.tokens, torch.tensor([True])).any()  # ends of the text say nothing


def test_a_table_says_what_is_informative(tmp_path):
    path = tmp_path / "unigrams.json"
    path.write_text(json.dumps({"5": -3.0, "7": -24.0}))
    canvas = answering(1, 3)
    canvas.end = 9
    decoder = Focore(table=str(path))
    decoder.begin(canvas)
    found = decoder.informative(canvas, torch.tensor([[5, 7, 6, 9, 15]]))
    assert found.tolist() == [[0.25, 1.0, 1.0, 0.0, 1.0]]
    path.write_text(json.dumps([-1.2, -12.0]))
    assert frequencies(str(path)).tolist() == pytest.approx([-1.2, -12.0, -torch.inf])
    for text, words in (("[1, ", "is not JSON"), ('{"a": 1}', "no table"), ("3", "no table"), ("[null]", "no table")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            generate(tiny(), prompts(), 4, decoder)


@pytest.mark.parametrize(("kind", "block", "shifted"), MODELS)
@pytest.mark.parametrize("off", ["scale=0", "hide='none'", "rho=0"])
def test_without_its_rules_it_is_the_confidence_decoder(off, kind, block, shifted):
    model = tiny(kind, block, shifted=shifted)
    plain, other = answering(), answering()
    steps = [
        [c.tokens.clone() for c in denoise(model, canvas, decoder, block=4)]
        for canvas, decoder in ((plain, "confidence"), (other, f"focore({off})"))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
    assert plain.forwards == other.forwards


@pytest.mark.parametrize(("kind", "block", "shifted"), MODELS)
@pytest.mark.parametrize("decoder", ["focore", "focore(hide='random')", "focore(adaptive=True, epsilon=0.3, tau=0.3)"])
def test_rows_do_not_depend_on_their_company(decoder, kind, block, shifted):
    model = tiny(kind, block, shifted=shifted)
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    for cache in ["recompute", "dual(refresh=2)", "delayed(refresh=3)"] if kind == "full" else ["causal"]:
        batch = generate(model, given, 9, decoder, cache=cache, block=4, seed=3)
        assert (batch[:, 7:11] != MASK).all()
        assert torch.equal(batch[1, :7], given[1])
        for row, prompt in enumerate(given):
            alone = generate(model, [prompt], 9, decoder, cache=cache, block=4, seed=3 + row)[0]
            assert torch.equal(batch[row, : len(alone)], alone), (cache, row)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("kind", "block", "shifted"), MODELS)
def test_caches_that_forget_nothing_change_nothing(kind, block, shifted, adaptive):
    model, differs = tiny(kind, block, shifted=shifted), 0
    decoder = Focore(adaptive=adaptive, epsilon=0.3, tau=0.3) if adaptive else Focore()
    for seed in range(2):
        given = prompts(2, seed=seed)
        plain = generate(model, given, 9, decoder, block=4)
        for cache in ["dual(refresh=1)", "prefix(refresh=1)"] if kind == "full" else ["causal"]:
            assert torch.equal(generate(model, given, 9, decoder, cache=cache, block=4), plain)
        differs += int((generate(model, given, 9, "confidence", block=4) != plain).any())
    assert differs, "the contrast never changed a token: the test proves nothing"


@pytest.mark.parametrize("cache", FULL_CACHES)
@pytest.mark.parametrize("hide", ["dense", "random"])
def test_what_is_hidden_was_written_and_is_little(cache, hide):
    model, canvas = tiny(), answering(3)
    most, looks, hidden = 0, 0, torch.zeros(0)
    for now in denoise(model, canvas, f"focore(hide='{hide}')", cache=cache, block=6):
        looks += int(hidden.any())
        hidden = now.hidden
        assert not (hidden & (now.given | (now.tokens == MASK))).any()
        written = (~now.given & (now.tokens != MASK)).sum(1)
        assert (hidden.sum(1) <= (written + 3) // 4).all()
        most = max(most, int(hidden.sum(1).max()))
    assert most == 3
    assert canvas.forwards == 12 + looks
    assert not (canvas.tokens == MASK).any()


def test_random_hides_as_many_elsewhere():
    counts, places = [], []
    for hide in ("dense", "random"):
        canvas = answering(1)
        run = denoise(Settled(0.6), canvas, f"focore(hide='{hide}', scale=0.5)")
        hidden = [c.hidden.clone() for c in run]
        counts.append([int(each.sum()) for each in hidden])
        places.append(hidden[-1])
    assert counts[0] == counts[1]
    assert not torch.equal(*places)


def test_the_second_look_hides_exactly_that():
    model, canvas, asked = tiny(), answering(2), []
    original = model.forward
    model.forward = lambda tokens, ctx: (asked.append(tokens.clone()), original(tokens, ctx))[1]
    hidden = torch.zeros_like(canvas.given)
    for now in denoise(model, canvas, "focore", block=6):
        if len(asked) == 2:
            first, second = asked
            assert torch.equal(first.masked_fill(hidden, MASK), second)
        else:
            assert not hidden.any()
        hidden = now.hidden.clone()
        asked.clear()


def test_adaptive_commits_in_parallel_and_rests():
    plain, quick = answering(1, 24), answering(1, 24)
    steps = [
        sum(1 for _ in denoise(Settled(0.8), canvas, decoder))
        for canvas, decoder in ((plain, "focore"), (quick, "focore(adaptive=True)"))
    ]
    assert steps[0] == 24
    assert plain.forwards > 40
    assert steps[1] <= 8
    assert quick.forwards <= 2 * steps[1]
    assert torch.equal(plain.tokens, quick.tokens)
    narrow, unsure = answering(1, 24), answering(1, 24)
    list(denoise(Settled(0.8), narrow, "focore(adaptive=True, span=2)"))
    list(denoise(Settled(0.4), unsure, "focore(adaptive=True)"))
    assert narrow.taken > quick.taken
    assert unsure.taken == 24  # nobody reaches tau


def test_pace():
    canvas = answering(1)
    pace, yes, no = Pace(canvas, 2, 4), torch.tensor([True]), torch.tensor([False])

    def step(stands=yes, grown=no, looked=no, turned=no, stable=yes, active=yes) -> tuple[bool, bool]:
        pace.step(active, stands, grown, looked, turned, stable)
        return bool(pace.quick), bool(pace.rests())

    assert step() == (False, False)
    assert step() == (True, False)  # it stood for two steps, but no second look has said yet that it changes nothing
    assert step(looked=yes, turned=yes) == (True, False)
    assert [step(looked=yes), step(), step(), step()] == [(True, True)] * 3 + [(True, False)]  # every fourth
    assert step(active=no, grown=yes) == (True, False)
    assert step(looked=yes, stable=no) == (True, True)
    assert step(stable=no, stands=no) == (False, False)  # two steps without a candidate
    assert [step()[0], step()[0]] == [False, True]
    assert step(grown=yes, stands=no) == (False, False)


def test_gaps_few_steps_and_temperature():
    rows = [prompts(1, n, seed=n)[0] for n in (9, 12)]
    for n, row in enumerate(rows):
        row[3 + n : 6 + n] = MASK
        row[-1] = MASK
    for decoder in ("focore(temperature=0.8)", "focore(adaptive=True, tau=0.2, epsilon=0.5, temperature=0.5)"):
        for model in (tiny(), tiny("leader", 4, shifted=True)):
            out = fill(model, rows, decoder, block=5, steps=3, seed=2)
            for row, filled, again in zip(rows, out, fill(model, rows, decoder, block=5, steps=3, seed=2), strict=True):
                assert (filled != MASK).all()
                assert torch.equal(filled[row != MASK], row[row != MASK])
                assert torch.equal(filled, again)


def test_guides_go_around_the_one_it_brings():
    model = tiny()
    model.eos_id = int(generate(model, prompts(1), 8, "focore")[0, 8])
    out = generate(model, prompts(1), 8, "focore", guide="eos(policy='never')")
    assert not (out[:, 6:] == model.eos_id).any()
    canvas = Canvas.answering(prompts(1), 8, MASK)
    list(denoise(model, canvas, "focore", guide="unconditional(inner='eos')"))
    assert canvas.forwards > 16


def test_together_writes_what_each_canvas_writes_alone():
    model = tiny()
    wishes = ["focore", "focore(adaptive=True, epsilon=0.3, tau=0.3)", "confidence"]
    alone, crowd = ([Canvas.answering(prompts(1, 6, n), 8, MASK) for n in range(3)] for _ in range(2))
    for canvas, decoder in zip(alone, wishes, strict=True):
        list(denoise(model, canvas, decoder, cache="dual", block=4))
    jobs = [(c, prepare(model, c, d, cache="dual", block=4)) for c, d in zip(crowd, wishes, strict=True)]
    list(together(model, jobs))
    for one, other in zip(alone, crowd, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert one.forwards == other.forwards


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("focore(hide='all')", "hide is 'all'; there are: dense, random, none"),
        ("focore(rho=-1)", "rho is -1; expected 0 or more"),
        ("focore(every=0)", "every is 0; expected at least 1"),
        ("focore(scale=-1)", "scale is -1"),
        ("focore(alpha=3)", "alpha is 3"),
    ],
)
def test_bad_input_is_one_clear_sentence(spec, words):
    with pytest.raises(ValueError, match=words):
        generate(tiny(), prompts(), 4, spec)
