"""The bench: statistics, what is compared, what it costs, what it advises, and its pictures."""

from __future__ import annotations

import itertools
import re
import time

import numpy as np
import pytest
import torch
from toy import END, Toy, letters, network, spaced

from unveil import spec
from unveil.context import Context, causal
from unveil.evaluate.advice import Advice, advice
from unveil.evaluate.bench import Arm, Bench, Measured, Role, Skipped, arms, draws, measure, token_by_token
from unveil.evaluate.intervals import paired, wilson
from unveil.evaluate.memory import Peak
from unveil.evaluate.problems import Setting, Subject
from unveil.sample import denoise
from unveil.tasks import Example
from unveil.watch.bench_page import page
from unveil.watch.labels import Box, place
from unveil.watch.pareto import pictures, rounds


def subject(kind: str = "full", block: int | None = None, **options) -> Subject:
    return Subject(network(kind, block), letters(), Toy(**options))


# Statistics


def test_wilson_is_wilsons_interval():
    found = wilson(np.array([1.0] * 8 + [0.0] * 2), np.arange(10))
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    none = wilson(np.zeros(20), np.arange(20))
    assert (none.low, none.high) == pytest.approx((0, 0.1611), abs=1e-4)
    twice = wilson(np.array([1.0] * 16 + [0.0] * 4), np.arange(20) % 10)
    assert (twice.low, twice.high) == pytest.approx((found.low, found.high)), "a problem that comes again tells nothing"


def test_a_paired_difference_is_never_surer_than_its_sample():
    base = np.array([1.0, 0.0] * 50)
    same = paired(base, base, np.arange(100))
    assert (same.mean, same.low, same.high) == pytest.approx((0, -0.03, 0.03))
    worse = paired(base * (np.arange(100) >= 40), base, np.arange(100))
    assert worse.mean == pytest.approx(-0.2)
    assert -0.32 < worse.low < -0.22
    assert -0.18 < worse.high < -0.08
    again = paired(base * (np.arange(100) >= 40), base, np.arange(100))
    assert again == worse, "the bootstrap is seeded"


def test_the_bootstrap_covers():
    numbers = np.random.default_rng(0)
    hits = 0
    for _ in range(40):
        base, other = numbers.random((2, 120)) < 0.7
        found = paired(other.astype(float), base.astype(float), np.arange(120))
        hits += found.low <= 0 <= found.high
    assert hits >= 36


def test_peak_memory_is_what_tensors_take_at_one_time():
    weight = torch.randn(500, 500)
    size = weight.nbytes
    with torch.inference_mode(), Peak() as peak:
        a = torch.zeros(500, 500)
        b = a + 1
        assert peak.bytes == 2 * size
        del a
        c = weight @ b
        view = c.t()
        del b, c
        for _ in range(5):
            view = torch.relu(view)
        assert peak.now == size
    del view
    assert peak.bytes == 2 * size
    assert peak.now == 0


# What is measured


def test_draws_number_equal_problems_alike():
    sets, same = draws(Toy(), 30, 2)
    flat = [example for one in sets for example in one]
    for (i, one), (j, other) in itertools.combinations(enumerate(flat), 2):
        assert (one == other) == (same.ravel()[i] == same.ravel()[j])
    for count, seeds, said in [(9, 1, "count is 9"), (20, 0, "seeds is 0")]:
        with pytest.raises(ValueError, match=said):
            draws(Toy(), count, seeds)


def test_problems_are_read_as_models_are_trained():
    asked = subject()
    example = asked.task.examples(1)[0]
    problem = asked.problem(example)
    assert problem.row == [END, *letters().encode(example.prompt), *[15] * 6]
    filling = subject(tail="xyz".replace("x", "a").replace("y", "b").replace("z", "c"))
    problem = filling.problem(filling.task.examples(1)[0])
    assert problem.row[-3:] == [0, 1, 2]
    assert problem.row[problem.answer] == [15] * 3, "as many blanks as the answer has tokens"


def test_vanilla_comes_first_and_what_is_refused_says_why():
    example = Toy().examples(1)
    found, skipped = arms(subject(), example, ["threshold", "ahd", "confidence"], ["recompute", "dual", "causal"])
    assert [arm.name for arm in found] == [
        "vanilla",
        "confidence, 3 steps a block",
        "confidence, 1 step a block",
        "threshold with recompute",
        "threshold with dual",
        "ahd with recompute",
        "confidence with dual",
    ]
    assert [(one.decoder, one.cache) for one in skipped] == [("any", "causal"), ("ahd", "dual")]
    assert "full attention" in skipped[0].reason
    assert "beyond the block" in skipped[1].reason
    led, skipped = arms(subject("leader", 4), example, ["confidence"], ["recompute", "causal", "prefix"])
    assert [arm.name for arm in led] == [
        "vanilla",
        "confidence, 1 step a block",
        "autoregressive",
        "confidence with recompute",
    ]
    assert led[0].setting == Setting("confidence", "causal", None, 4)
    assert led[2].setting.block == 1
    assert [one.cache for one in skipped] == ["prefix"]


def test_filling_looks_both_ways_and_is_not_autoregressive():
    example = Toy(tail="ab").examples(1)
    asked = subject("leader", 4, tail="ab")
    found, skipped = arms(asked, example, ["threshold"], ["dual"], parent=asked)
    assert found[0].setting == Setting("confidence")
    assert [arm.role for arm in found] == ["vanilla", "fewer steps", "decoder"]
    assert skipped == [Skipped("autoregressive", "causal", "it does not look at what follows a blank")]


def test_a_guide_that_the_parent_cannot_follow_leaves_the_parent_out():
    asked = subject()
    parent = Subject(token_by_token(network("causal"), letters()), letters(), Toy())
    guided = {"guide": "unconditional(scale=0.5)", "parent": parent}
    found, skipped = arms(asked, asked.task.examples(3), ["threshold"], ["recompute"], **guided)
    assert [each.role for each in found].count("autoregressive") == 0
    assert [(each.decoder, each.cache) for each in skipped] == [("autoregressive", "causal")]
    assert "guidance" in skipped[0].reason
    plain, _ = arms(asked, asked.task.examples(3), ["threshold"], ["recompute"], parent=parent)
    assert [each.role for each in plain].count("autoregressive") == 1


@pytest.mark.parametrize(("kind", "block"), [("full", None), ("leader", 4)])
def test_company_changes_neither_scores_nor_passes(kind, block):
    asked = subject(kind, block)
    problems = [asked.problem(example) for example in asked.task.examples(2, seed=1)]
    assert len(problems[0].row) != len(problems[1].row)
    ways, _ = arms(asked, [problems[0].example], spec.names("decoders"), spec.names("caches"))
    assert len(ways) > 20
    for arm in ways:
        alone = [asked.solve([problem], arm.setting, [i])[0] for i, problem in enumerate(problems)]
        assert asked.solve(problems, arm.setting, range(2)) == alone, arm.name


def test_measure():
    sets, same = draws(Toy(), 12, 2)
    ways, skipped = arms(subject(), sets[0], ["threshold(tau=0.4)"], ["recompute"])
    heard = []
    found = measure(ways, sets, batch=5, timed=2, runs=3, report=lambda *told: heard.append(told))
    assert heard[-1][0] == heard[-1][1] == len(ways) * (1 + 24 + 6)
    for one in found:
        assert one.scores.shape == one.tokens.shape == one.forwards.shape == (2, 12)
        assert len(one.speeds) == 3
        assert one.speed > 0
        assert one.memory > 0
    vanilla, fewer, fewest, fast = found
    assert (vanilla.forwards == 6).all()
    assert (fewer.forwards == 3).all()
    assert (fewest.forwards == 1).all()
    assert 1 < fast.calls < 6
    assert (vanilla.tokens <= 6).all()
    assert vanilla.parallel == pytest.approx(vanilla.tokens.mean() / 6)
    bench = Bench(found, skipped, same)
    assert bench.difference(vanilla).mean == 0
    assert 0 < bench.quality(vanilla).mean < 1
    for name in ("batch", "timed", "runs"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            measure(ways, sets, **{name: 0})


def test_one_thread_is_timed_by_the_processor():
    """A model that waits for others, as on a busy machine, is no slower for it."""
    one = subject()
    problem = one.problem(one.task.examples(1)[0])
    hook = one.model.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    tokens, seconds = one.time([problem], Setting("confidence"), [0])
    hook.remove()
    assert 0 < seconds < 0.2 * tokens


def test_as_many_blanks_as_the_answer_has_tokens_where_it_stands():
    asked = Subject(network("full"), spaced(), Toy())
    problem = asked.problem(Example("a b", " a", " ba"))
    assert problem.row == [0, 6, 7, asked.model.mask_id, 7, 4]
    assert problem.answer == slice(3, 4)
    canvas = asked.canvas(problem, 0)
    canvas.tokens[0, 3] = 6
    assert asked.judged(problem, canvas).completion == " a"  # with its space, as it follows the prompt


def test_a_parent_decoded_in_blocks_of_one_follows_its_own_likeliest_tokens():
    parent = network("causal")
    rows = [[END, 3, 4], [END, 5, 6, 7, 8]]
    right = []
    for row in rows:
        line = list(row)
        with torch.inference_mode():
            for _ in range(6):
                line.append(int(parent(torch.tensor([line]), Context(rule=causal))[0, -1].argmax()))
        right.append(line)
    follower = token_by_token(network("causal"), letters())
    asked = Subject(follower, letters(), Toy())
    for row, line in zip(rows, right, strict=True):
        example = Toy().examples(1)[0]
        problem = asked.problem(type(example)(letters().decode(row[1:]), ""))
        canvas = asked.canvas(problem, 0)

        for _ in denoise(follower, canvas, "confidence", cache="causal", block=1):
            pass
        assert canvas.rows()[0].tolist() == line
        assert canvas.forwards == 6
    leader = network("leader", 4)
    assert token_by_token(leader, letters()) is leader
    with pytest.raises(ValueError, match="full attention"):
        token_by_token(network("full"), letters())


# What it advises


def made_up(rights: dict[str, float], speeds: dict[str, float], n: int = 200, draws: int = 3) -> Bench:
    """A bench in which of `n` problems the first share is right, decoder by decoder."""
    known: dict[str, Role] = {"vanilla": "vanilla", "ar": "autoregressive"}
    found = []
    for name, right in rights.items():
        arm = Arm(Setting(name, "causal" if name == "ar" else "prefix"), subject(), known.get(name, "decoder"))
        scores = np.tile((np.arange(n) < right * n).astype(float), (draws, 1))
        tokens, forwards = np.full((draws, n), 20), np.full((draws, n), int(600 / speeds[name]))
        found.append(Measured(arm, scores, tokens, forwards, [speeds[name]] * 3, 10**6))
    return Bench(found, [Skipped("any", "causal", "it is <not> kept")], np.arange(n * draws).reshape(draws, n))


def test_advice():
    rights = {"vanilla": 0.9, "slow": 0.9, "fast": 0.9, "wrong": 0.5, "ar": 0.8}
    speeds = {"vanilla": 10.0, "slow": 20.0, "fast": 41.0, "wrong": 90.0, "ar": 30.0}
    told = advice(made_up(rights, speeds))
    assert told.sentence.startswith("Same quality, 4.1x faster: fast with prefix.")
    assert "1.4x as fast as autoregressive" in told.sentence
    assert told.best is not None
    assert told.best.name == "fast with prefix"
    assert "Better quality (+3.0 points)" in advice(made_up(rights | {"fast": 0.93}, speeds)).sentence
    assert "as far as 90 problems can tell" in advice(made_up(rights, speeds, n=30)).sentence
    small = advice(made_up(rights, speeds, n=10, draws=1)).sentence
    assert "too small to tell" in small
    assert "--count" in small
    slow = advice(made_up(rights, dict.fromkeys(rights, 10.0))).sentence
    assert slow.startswith("Nothing that keeps the quality of vanilla is faster")
    assert "keeps the quality" in advice(made_up({"vanilla": 0.9, "fast": 0.5}, speeds)).sentence
    assert "solves none of 600" in advice(made_up(dict.fromkeys(rights, 0.0), speeds)).sentence


def test_the_front_is_what_nothing_beats():
    rights = {"vanilla": 0.9, "slow": 0.85, "fast": 0.9, "wrong": 0.5, "ar": 0.95}
    speeds = {"vanilla": 10.0, "slow": 20.0, "fast": 41.0, "wrong": 90.0, "ar": 5.0}
    bench = made_up(rights, speeds)
    front = bench.front(lambda one: one.speed)
    assert [one.arm.setting.decoder for one in front] == ["wrong", "fast", "ar"]
    for one, other in itertools.product(bench.measured, bench.measured):
        beaten = other.speed > one.speed and other.scores.mean() > one.scores.mean()
        assert not (beaten and any(one is each for each in front))
    speed, calls = pictures(bench)
    assert [point.name for point in speed.front] == ["wrong", "fast", "autoregressive"]
    assert speed.stairs == [(90, 60), (41, 60), (41, 90), (5, 90), (5, 95)], "what is far below stands on the floor"
    assert calls.front[0].x == 600 // 90
    assert rounds(3, 120) == [5, 10, 20, 50, 100]


def test_labels_cover_neither_points_nor_each_other():
    numbers = np.random.default_rng(1)
    points = [(float(x), float(y)) for x, y in numbers.uniform(60, 540, (14, 2))]
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    room = Box(0, 0, 600, 600)
    found = place(points, [(70, 12)] * 14, marks, room)
    for one, other in itertools.combinations(found, 2):
        assert one.shared(other) == 0
    assert all(box.shared(mark) == 0 for box in found for mark in marks)
    assert all(box.left >= 0 and box.right <= 600 and box.low >= 0 and box.high <= 600 for box in found)


@pytest.fixture(scope="module")
def crowded() -> tuple[Bench, Advice]:
    names = [f"d{i}" for i in range(12)]
    rights = {"vanilla": 0.9, "ar": 0.8} | {name: 0.95 - 0.02 * i for i, name in enumerate(names)}
    speeds = {"vanilla": 10.0, "ar": 30.0} | {name: 20.0 + 5 * i for i, name in enumerate(names)}
    bench = made_up(rights, speeds)
    return bench, advice(bench)


def test_the_page_is_whole_and_escapes(crowded):
    bench, told = crowded
    text = page(bench, told, {"model": "a & b"})
    assert "a &amp; b" in text
    assert "&lt;not&gt;" in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=", text)
    assert text.count("<svg") == 2
    assert all(f"<td>{one.name}</td>" in text for one in bench.measured)
    assert told.sentence in text
    assert text.count("<tr class=") == len(bench.measured)


def test_the_png_is_one(crowded):
    pytest.importorskip("matplotlib")
    from unveil.watch.pareto import png

    bench, told = crowded
    assert png(bench, told.best, "title").startswith(b"\x89PNG")
