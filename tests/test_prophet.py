"""Prophet: its clock, its answer regions, what it fills, and the levels fitted to a model."""

from __future__ import annotations

import math

import pytest
import torch
from models import MASK, TINY, prompts, tiny

from unveil import spec
from unveil.canvas import Canvas
from unveil.context import EVERYTHING
from unveil.decoders.prophet import Prophet
from unveil.denoiser import Denoiser
from unveil.evaluate.calibrate_prophet import TRACES, fit, lowest
from unveil.sample import denoise, fill, generate

torch.set_num_threads(1)
OFF = "high=1e999, mid=1e999, low=1e999"
SOON = "high=0.5, mid=0.3, low=0.1"
INNER = ["confidence", "threshold(tau=0.3)", "random(temperature=0.9)", "saber"]
SETTINGS = [
    ("full", False, "recompute"),
    ("full", True, "prefix"),
    ("full", False, "dual"),
    ("full", False, "delayed"),
    ("leader", True, "causal"),
]


class Scripted(Denoiser):
    """Token 1 leads token 2 by a gap that is written down for each position."""

    mask_id = MASK

    def __init__(self, gaps: list[float], tokens: dict[int, int] | None = None):
        super().__init__()
        self.table = torch.zeros(len(gaps), TINY.vocab)
        for place, gap in enumerate(gaps):
            self.table[place, (tokens or {}).get(place, 1)] = gap

    def forward(self, tokens, ctx=EVERYTHING):
        window = ctx.over(tokens.shape[1])
        logits = self.table[window.positions(tokens.device).expand(len(tokens), -1)]
        return logits if ctx.read is None else logits.flatten(0, 1)[ctx.read]


def run(model, decoder, prompt: int = 0, length: int = 9, cache="recompute", given=None, **options) -> Canvas:
    """A canvas of `length` blanks behind `prompt` tokens, some of them `given`, after decoding."""
    row = torch.tensor([0] * prompt + [MASK] * length)
    for place, token in (given or {}).items():
        row[prompt + place] = token
    canvas = Canvas.filling([row], MASK, torch.zeros(1, dtype=torch.long))
    for _ in denoise(model, canvas, decoder, cache=cache, **options):
        pass
    assert not bool((canvas.tokens == MASK).any())
    return canvas


@pytest.mark.parametrize(("gap", "forwards"), [(8, 1), (7.5, 1), (6, 3), (5, 3), (3, 7), (2.5, 7), (2.4, 9)])
def test_the_level_falls_with_progress(gap, forwards):
    # 9 predictions: 3/9 is the first at or above 0.33, 7/9 the first at or above 0.67
    assert run(Scripted([gap] * 9), "prophet(region='blank')").forwards == forwards


def test_progress_counts_the_predictions_of_all_blocks():
    decoder = Prophet(high=math.inf, mid=math.inf, low=0, region="blank", late=0.8)
    assert run(Scripted([3.0] * 12), decoder, length=12, block=4).forwards == 10
    # two predictions a block: 10 blanks in blocks of 4 have 2 + 2 + 2 of them, and 5/6 is the first above 0.8
    assert run(Scripted([3.0] * 10), decoder, length=10, block=4, steps=2).forwards == 5
    assert decoder.total.tolist() == [6]


def gaps(wide: range, length: int = 12) -> list[float]:
    return [9.0 if place in wide else 1.0 for place in range(length)]


@pytest.mark.parametrize(
    ("options", "wide", "given", "tokens"),
    [
        ("region='position', at=4, count=3", range(4, 7), {}, {}),
        ("region='anchor', anchor=[7, 8], count=3", range(5, 8), {3: 7, 4: 8}, {}),
        ("region='anchor', anchor=[7, 8], count=3", range(5, 8), {0: 7, 1: 8, 3: 7, 4: 8}, {}),  # the last one counts
        ("region='anchor', anchor=[7, 8], at=1, count=3", range(6, 9), {3: 7, 4: 8}, {}),
        ("region='anchor', anchor=[7, 8], count=3", range(5, 8), {}, {3: 7, 4: 8}),  # predicted, not written
        ("region='last', count=3", range(9, 12), {}, {}),
        ("region='last', count=3", range(5, 8), {}, {8: 9, 10: 9}),  # before the first predicted end
    ],
)
@pytest.mark.parametrize("prompt", [0, 3])
def test_the_answer_region(options, wide, given, tokens, prompt):
    def forwards(here: range) -> int:
        model = Scripted([0.0] * prompt + gaps(here), {prompt + place: token for place, token in tokens.items()})
        model.eos_id = 9
        decoder = f"prophet({options}, mid=1e999, low=1e999, inner='margin')"
        return run(model, decoder, prompt, 12, given=given).forwards

    blanks = 12 - len(given)
    assert forwards(wide) == 1
    assert forwards(range(wide.start, wide.stop - 1)) == blanks or tokens  # one of three is not sure


def test_without_its_anchor_a_row_never_commits_early():
    assert run(Scripted([9.0] * 8), "prophet(region='anchor', anchor=[7, 8])", length=8).forwards == 8


def test_an_anchor_is_not_looked_for_in_the_prompt_or_across_the_end():
    decoder = "prophet(region='anchor', anchor=[7, 8], mid=1e999, low=1e999)"
    model = Scripted([9.0] * 10)
    row = torch.tensor([7, 8, 1, 1] + [MASK] * 6)
    canvas = Canvas.filling([row], MASK, torch.zeros(1, dtype=torch.long))
    assert sum(1 for _ in denoise(model, canvas, decoder)) == 6
    assert run(Scripted([9.0] * 10, {0: 8, 9: 7}), decoder, length=10).forwards == 10


def test_what_is_written_does_not_lift_the_mean_unless_asked():
    # the first two of the region are written at once and have a wide gap; the third keeps 1.0
    model = Scripted([20.0, 20.0, 1.0, 0.5, 0.5, 0.5])
    common = "region='position', count=3, high=10, mid=10, low=10"
    assert run(model, f"prophet({common}, masked_only=False)", length=6).forwards == 1  # (20 + 20 + 1) / 3
    assert run(model, f"prophet({common})", length=6).forwards == 1
    later = "region='position', count=3, high=1e999, early=0.5, mid=10, low=10"  # when both have been written
    assert run(model, f"prophet({later}, masked_only=False)", length=6).forwards == 3
    assert run(model, f"prophet({later})", length=6).forwards == 4  # the region stands written after three


def test_a_region_beyond_the_block_fills_the_whole_row_where_it_is_predicted():
    model, decoder = Scripted([1.0] * 9 + [9.0] * 3), "prophet(count=3, mid=1e999, low=1e999)"
    for cache in ("recompute", "prefix"):
        assert run(model, decoder, length=12, block=4, cache=cache).forwards == 1
    # the dual cache shows the last block from the ninth prediction on; early ends at 0.33, so it is moved
    late = "prophet(count=3, early=1, late=1)"
    assert run(model, late, length=12, block=4, cache="dual").forwards == 9


def test_where_only_the_block_is_predicted_only_the_block_is_filled():
    decoder = "prophet(region='position', at=0, count=2, early=1, late=1)"
    for cache, forwards in (("recompute", 1), ("dual", 3)):  # an answer that stands written is decided: one a block
        assert run(Scripted([9.0] * 12), decoder, length=12, block=4, cache=cache).forwards == forwards


@pytest.mark.parametrize("kind", SETTINGS, ids=str)
@pytest.mark.parametrize("inner", INNER)
def test_without_levels_it_is_what_it_stands_around(kind, inner):
    model, given = tiny(kind[0], 4, shifted=kind[1]), [prompts(1, n, n)[0] for n in (5, 8)]
    # under the delayed cache, what is read is computed: a wider look at what is written would change it
    for more in ("",) if kind[2] == "delayed" else ("", ", masked_only=False, region='blank'"):
        made = generate(model, given, 10, f'prophet(inner="{inner}", {OFF}{more})', cache=kind[2], block=4, seed=2)
        assert torch.equal(made, generate(model, given, 10, inner, cache=kind[2], block=4, seed=2))


@pytest.mark.parametrize("kind", [*SETTINGS, ("block", False, "causal"), ("leader", True, "recompute")], ids=str)
@pytest.mark.parametrize("region", ["region='last', count=2", "region='position', at=3", "region='blank'"])
def test_rows_are_written_as_alone_and_what_is_given_stays(kind, region):
    model = tiny(kind[0], 4, shifted=kind[1])
    model.eos_id = 3
    rows = [prompts(1, n, n)[0] for n in (9, 12, 15)]
    for n, row in enumerate(rows):
        row[3 + n :] = MASK
        row[7 + n] = 3
    decoder, saved = f"prophet({region}, {SOON}, temperature=0.5, inner='threshold(tau=0.6)')", 0
    kwargs = {"cache": kind[2], "block": 4, "attention": model.attention}
    batch = fill(model, rows, decoder, seed=4, **kwargs)
    for n, row in enumerate(rows):
        assert torch.equal(batch[n][row != MASK], row[row != MASK])
        assert not bool((batch[n] == MASK).any())
        assert torch.equal(batch[n], fill(model, [row], decoder, seed=4 + n, **kwargs)[0])
    for row in rows:
        counts = []
        for each in (decoder, "confidence"):
            canvas = Canvas.filling([row], MASK, torch.zeros(1, dtype=torch.long), model.attention)
            counts.append(sum(1 for _ in denoise(model, canvas, each, cache=kind[2], block=4)))
        saved += counts[1] - counts[0]
        assert counts[0] <= counts[1]
    assert saved, "it never committed early: the test proves nothing"


def test_the_temperature_is_that_of_what_it_stands_around():
    for text in ("prophet(temperature=0.7, top_p=0.8)", "prophet(inner='confidence(temperature=0.7, top_p=0.8)')"):
        decoder = spec.build("decoders", text)
        assert (decoder.temperature, decoder.base.temperature) == (0.7, 0.7)
        assert (decoder.top_p, decoder.base.top_p) == (0.8, 0.8)
    assert spec.build("decoders", "prophet(inner='random')").temperature == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("high=-1", "high is -1"),
        ("early=0.7, late=0.3", "early is 0.7 and late 0.3"),
        ("region='middle'", "no answer region called 'middle'; there are: last, anchor, position, blank"),
        ("region='anchor'", "none was given"),
        ("anchor=['x']", "expected a list of token ids"),
        ("count=0", "count 0"),
        ("inner='psychic'", "no decoder called 'psychic'"),
    ],
)
def test_bad_options_are_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        spec.build("decoders", f"prophet({options})")


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ValueError, match="at is 8; expected less than the 8 positions"):
        generate(tiny(), prompts(), 8, "prophet(region='position', at=8)")
    with pytest.raises(ValueError, match="beyond the block"):
        generate(tiny(), prompts(), 8, "prophet(inner='ahd')", cache="dual", block=4)


def test_the_smallest_level_that_is_right_often_enough():
    gap = torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0])
    right = torch.tensor([False, True, True, True, False])
    assert lowest(gap, right, 0.75) == 2.0  # 3 of 4
    assert lowest(gap, right, 0.8) == math.inf
    assert lowest(gap, right, 0.6) == 1.0
    assert lowest(gap[:3], right[:3], 1.0) == 2.0
    assert lowest(gap[:0], right[:0], 0.5) == math.inf


def test_fitted_levels_do_what_they_say():
    model, rows = tiny(), list(prompts(TRACES, 4))
    levels = fit(model, rows, 6, "prophet(count=2)", agreement=0.8, block=3)
    assert levels.traces == TRACES
    assert levels.committed > 0
    assert all(0.8 * above <= final for above, final in zip(levels.above, levels.final, strict=True))
    canvas = Canvas.answering(rows, 6, MASK)
    for _ in denoise(model, canvas, Prophet(count=2, **levels.options), block=3):
        pass
    assert float(canvas.taken.sum() / (6 * TRACES)) == pytest.approx(1 - levels.saved)


def test_a_model_that_never_changes_its_mind_needs_no_level():
    levels = fit(Scripted([2.0, 3.0, 2.0, 3.0, 2.0, 3.0]), [torch.full((6,), MASK)] * TRACES, None, "prophet(count=2)")
    # of the last two positions the third from the left goes first: means 2.5, then 2 or 3
    assert max(levels.options.values()) <= 3.0
    assert levels.right == 1.0
    assert levels.committed == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda rows: fit(tiny(), rows[:9], 6), f"9 traces are too few.*at least {TRACES}"),
        (lambda rows: fit(tiny(), rows, 6, agreement=0), "agreement is 0"),
        (lambda rows: fit(tiny(), rows, 6, "confidence"), "expected prophet"),
        (lambda rows: fit(tiny(), rows, 6, together=0), "together is 0"),
    ],
)
def test_a_fit_says_what_it_needs(call, words):
    with pytest.raises(ValueError, match=words):
        call(list(prompts(TRACES, 4)))
