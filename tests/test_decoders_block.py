"""Decoders that look at the block alone: unit vectors, plain re-implementations, invariants, and bad input."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from models import MASK, gapped, prompts, tiny

from unveil import spec
from unveil.canvas import Canvas
from unveil.context import Window
from unveil.decoders.edit import Edit
from unveil.decoders.hierarchy import peaks
from unveil.prediction import Prediction
from unveil.sample import denoise, fill, generate

DECODERS = [
    "factor(f=2)",
    "frechet(delta=-0.5)",
    "entropy_bound(gamma=2)",
    "entropy_bound(gamma=2, temperature=0.8)",
    "klass(tau=0.2, epsilon=2, n=1)",
    "credit(tau=0.4)",
    "credit(tau=0.4, adaptive=True)",
    "hierarchy(low=0.2, high=0.5)",
    "origin",
    "origin(kind='maskgit_plus')",
    "origin(kind='margin', alg_temp=0.3, temperature=0.7)",
    "origin(kind='entropy', alg_temp=0.3)",
    "first_hitting",
    "first_hitting(tokens=2, temperature=0)",
    "threshold(tau=0.3, sub=2)",
    "hierarchy(low=0.2, high=0.5, remask=0.6)",
    "edit(tau=0.4, post=4)",
    "edit(tau=0.4, edit=0.3, post=3, penalty=2)",
]
MODELS = [("full", None, False), ("full", None, True), ("block", 4, False), ("leader", 4, True)]


CACHES = ["dual", "prefix", "causal", "causal"]
BOTH = pytest.mark.parametrize(("kind", "cache"), list(zip(MODELS, CACHES, strict=True)), ids=str)


def written(model, rows, decoder: str, **options) -> tuple[list[list[int]], int]:
    """The rows and the forwards they took."""
    canvas = Canvas.answering(rows, 10, MASK, torch.arange(len(rows)) + options.pop("seed", 0))
    for _ in denoise(model, canvas, decoder, **options):
        pass
    return [row.tolist() for row in canvas.rows()], canvas.forwards


def prediction(rows: list[list[float]]) -> tuple[Canvas, Prediction]:
    """Blanks at which token 0 has the given probabilities and token 1 the rest."""
    p = torch.tensor(rows, dtype=torch.float64)
    canvas = Canvas.filling(torch.full(p.shape, MASK), MASK, torch.arange(len(p)))
    canvas.window = canvas.block = Window(0, p.shape[1])
    canvas.budget = p.shape[1]
    logits = torch.full((p.numel(), 16), -torch.inf)
    logits[:, 0], logits[:, 1] = p.flatten().log(), (1 - p).flatten().log()
    return canvas, Prediction(logits, torch.arange(p.numel()), canvas)


def count(decoder: str, p: list[float]) -> int:
    """How many positions it commits at once, and that they are the leftmost: `p` falls."""
    canvas, seen = prediction([p])
    rule = spec.build("decoders", decoder)
    rule.begin(canvas)
    rule.enter(canvas)
    kept = (rule.write(canvas, seen) != MASK)[0]
    assert kept[: int(kept.sum())].all()
    return int(kept.sum())


def of_entropy(nats: float) -> float:
    """The larger probability of a pair whose entropy it is."""
    low, high = 0.5, 1 - 1e-12
    for _ in range(80):
        p = torch.tensor((low + high) / 2, dtype=torch.float64)
        entropy = float(-p * p.log() - (1 - p) * (1 - p).log())
        low, high = (float(p), high) if entropy > nats else (low, float(p))
    return low


def test_unit_vectors():
    p = [0.98, 0.95, 0.900001, 0.60]
    assert count("threshold(tau=0.9)", p) == 3
    assert count("factor", p) == 3
    assert count("frechet(delta=0)", p) == 4
    assert count("frechet", p) == 3
    entropies = [of_entropy(nats) for nats in (0.02, 0.05, 0.09, 0.30)]
    assert count("entropy_bound", entropies) == 3
    assert count("entropy_bound(gamma=0)", entropies) == 1
    assert count("entropy_bound(gamma=0.17)", entropies) == 4
    low = [0.55, 0.53, 0.51]  # the best always goes, and alone
    assert {count(name, low) for name in ("factor", "frechet", "credit", "hierarchy", "entropy_bound")} == {1}


def test_frechet_of_equal_probabilities_is_factor():
    for p in (0.7, 0.8, 0.9, 0.93, 0.97, 0.99):
        for delta in (0.05, 0.23, 0.51, 0.77):
            assert count(f"frechet(delta={delta})", [p] * 12) == count(f"factor(f={1 - delta})", [p] * 12)


def test_frechet_commits_what_factor_does_or_more():
    p = torch.rand(500, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sqrt().sqrt()
    canvas, seen = prediction(p.clamp(0.51, 0.999999).tolist())
    rules = [spec.build("decoders", text) for text in ("factor(f=0.8)", "frechet(delta=0.2)")]
    counts = [(rule.write(canvas, seen) != MASK).sum(1) for rule in rules]
    assert (counts[0] <= counts[1]).all()
    assert (counts[0] < counts[1]).any()


def test_sub_blocks_open_from_the_left():
    sure = [0.6, 0.95, 0.99, 0.95, 0.99, 0.99]
    canvas, seen = prediction([sure])
    rule = spec.build("decoders", "threshold(sub=2)")
    assert (rule.write(canvas, seen) != MASK).tolist() == [[False, True, False, False, False, False]]
    canvas.tokens[0, :2] = 0
    assert (rule.write(canvas, seen) != MASK).tolist() == [[True, True, True, True, False, False]]
    model = tiny()
    assert written(model, prompts(), "threshold(tau=0, sub=3)", block=5)[1] == 4  # 3 + 2 of each block


def test_peaks_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    score = torch.randint(0, 4, (300, 11), generator=generator).float()  # with many ties
    where = torch.rand(300, 11, generator=generator) < 0.6
    found = peaks(score, where)
    for row in range(300):
        expected, run = [], []
        for at in [*range(11), None]:
            if at is not None and where[row, at]:
                run.append(at)
            elif run:
                expected.append(max(run, key=lambda i: (float(score[row, i]), -i)))
                run = []
        assert found[row].nonzero()[:, 0].tolist() == expected


def test_hierarchy_takes_back_what_has_become_doubtful():
    canvas, seen = prediction([[0.9, 0.8, 0.99, 0.97, 0.5]])
    canvas.tokens[0, :2] = torch.tensor([1, 1])  # of probability .1 and .2
    rule = spec.build("decoders", "hierarchy(low=0.6, high=0.98, remask=0.3)")
    assert rule.revises
    assert not spec.build("decoders", "hierarchy").revises
    assert rule.write(canvas, seen).tolist() == [[1, 1, 0, MASK, MASK]]  # one gained, so none may go
    rule.high = 0.95
    assert rule.write(canvas, seen).tolist() == [[MASK, 1, 0, 0, MASK]]  # two gained, the worse one goes


@torch.no_grad()
def plain_loop(model, prompt, length, choose):
    """One row in one block, written plainly: `choose(p, open, step)` returns (position, token) pairs."""
    x = torch.cat([prompt, torch.full((1, length), MASK)], 1)
    step = 0
    while (x == MASK).any():
        logits = model(x)[0].double()
        logits[:, MASK] = -torch.inf
        blanks = (x[0] == MASK).nonzero()[:, 0].tolist()
        for at, token in choose(logits, blanks, step):
            x[0, at] = token
        step += 1
    return x[0].tolist(), step


@pytest.mark.parametrize(("tau", "epsilon", "n"), [(0.2, 1.0, 2), (0.1, 3.0, 1), (0.3, 0.3, 2)])
def test_klass_equals_the_rule_written_plainly(tau, epsilon, n):
    more = 0
    for seed in range(6):
        model, before, streak = tiny(seed=seed), {}, dict.fromkeys(range(30), 0)

        def choose(logits, blanks, step, before=before, streak=streak):
            p = logits.softmax(-1)
            for at in blanks:
                now = p[at].clamp_min(1e-12)
                if at in before:
                    still = float((p[at] * (now.log() - before[at].log())).sum()) < epsilon
                    streak[at] = streak[at] + 1 if still else 0
                before[at] = now
            ripe = [at for at in blanks if p[at].max() > tau and streak[at] >= n]
            ripe = ripe or [max(blanks, key=lambda at: float(p[at].max()))]
            return [(at, int(p[at].argmax())) for at in ripe]

        expected = plain_loop(model, prompts(1, seed=seed), 10, choose)
        got = written(model, prompts(1, seed=seed), f"klass(tau={tau}, epsilon={epsilon}, n={n})")
        assert (got[0][0], got[1]) == expected
        more += 10 - got[1]
    assert more, "no step wrote more than one token: the test proves nothing"


@pytest.mark.parametrize("adaptive", [False, True])
def test_credit_equals_the_rule_written_plainly(adaptive):
    differs = 0
    for seed in range(6):
        model, credit = tiny(seed=seed), torch.zeros(30, 16, dtype=torch.float64)

        def choose(logits, blanks, step, credit=credit):
            alpha, beta, gamma = (1 - len(blanks) / 10, 1 - len(blanks) / 10, 1) if adaptive else (0.7, 0.8, 0.2)
            credit.mul_(beta)
            best, token = logits.softmax(-1).max(-1)
            credit[blanks, token[blanks]] += best[blanks] ** gamma
            p, token = (logits + alpha * torch.log(credit[: len(logits)] + 1)).softmax(-1).max(-1)
            sure = [at for at in blanks if p[at] >= 0.5] or [max(blanks, key=lambda at: float(p[at]))]
            return [(at, int(token[at])) for at in sure]

        expected = plain_loop(model, prompts(1, seed=seed), 10, choose)
        got = written(model, prompts(1, seed=seed), f"credit(tau=0.5, adaptive={adaptive})")
        assert (got[0][0], got[1]) == expected
        differs += written(model, prompts(1, seed=seed), "threshold(tau=0.5)") != got
    assert differs, "credit never changed anything: the test proves nothing"


@pytest.mark.parametrize("steps", [3, 7, 10])
def test_origin_keeps_dreams_clock(steps):
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).tolist()
    left, shares = 10, []
    for k in range(steps):
        share = int(left * (1 - times[k + 1] / times[k])) if k < steps - 1 else left
        left -= share
        shares += [share] if share else []  # an empty step is skipped
    canvas = Canvas.answering(prompts(2), 10, MASK)
    blanks = [int((c.tokens == MASK).sum(1)[0]) for c in denoise(tiny(), canvas, "origin(kind='margin')", steps=steps)]
    assert [a - b for a, b in zip([10, *blanks], blanks, strict=False)] == shares


def test_origin_reveals_each_blank_at_a_time_of_its_own():
    canvas = Canvas.answering(prompts(1).expand(4000, -1), 3, MASK, torch.arange(4000))
    next(denoise(tiny(), canvas, "origin(eps=0.1)", steps=3))
    first = (canvas.tokens[:, 6:] != MASK).sum(1)
    # Each blank falls at step 1, 2, 3 with probability .3, .3, .4; the first step that reveals any is the first made.
    share = [0.3, 0.3, 0.4]
    expected = torch.zeros(4, dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            for c in range(3):
                expected[[a, b, c].count(min(a, b, c))] += share[a] * share[b] * share[c]
    observed = torch.bincount(first, minlength=4).double() / 4000
    assert (observed - expected).abs().max() < 0.025


def test_alg_temp_draws_without_replacement():
    p, many = [0.9, 0.5, 0.7, 0.6], 8000
    canvas, seen = prediction([p] * many)
    canvas.budget = 2
    rule = spec.build("decoders", "origin(kind='maskgit_plus', alg_temp=0.2)")
    rule.enter(canvas)
    rule.eps = 0.0  # four blanks in two steps: two now
    chosen = rule.write(canvas, seen) != MASK
    assert (chosen.sum(1) == 2).all()
    weight = (torch.tensor(p, dtype=torch.float64) / 0.2).softmax(-1)
    for a in range(4):
        for b in range(a):
            expected = weight[a] * weight[b] * (1 / (1 - weight[a]) + 1 / (1 - weight[b]))
            assert abs(float((chosen[:, a] & chosen[:, b]).double().mean() - expected)) < 0.02


def test_first_hitting_orders_are_uniform():
    canvas = Canvas.answering(prompts(1).expand(2400, -1), 4, MASK, torch.arange(2400))
    moment = torch.zeros(2400, 4)
    for done in denoise(tiny(), canvas, "first_hitting"):
        moment += done.tokens[:, 6:] == MASK
    assert (moment.sort(1).values == torch.arange(4)).all()  # one token a step
    codes = (moment.argsort(1) * torch.tensor([64, 16, 4, 1])).sum(1)
    orders = [64 * a + 16 * b + 4 * c + d for a, b, c, d in permutations(range(4))]
    observed = torch.tensor([float((codes == code).sum()) for code in orders])
    assert ((observed - 100) ** 2 / 100).sum() < 49.7  # chi-squared with 23 degrees, one in a thousand


def test_edit_equals_the_rule_written_plainly():
    edits = capped = 0
    for seed in range(8):
        model, prompt = tiny(seed=seed), prompts(1, seed=seed)
        model.requires_grad_(False)
        x, steps, after, changed = torch.cat([prompt, torch.full((1, 10), MASK)], 1), 0, 0, True
        while (x == MASK).any() or (changed and after < 5):
            full = not (x == MASK).any()
            logits = model(x)[0].double()
            logits[:, MASK] = -torch.inf
            logits[torch.arange(1, 16), x[0, :-1]] -= 1.5
            p, token = logits.softmax(-1).max(-1)
            before = x[0].clone()
            blanks = [at for at in range(6, 16) if before[at] == MASK]
            sure = [at for at in blanks if p[at] >= 0.4] or sorted(blanks, key=lambda at: -float(p[at]))[:1]
            other = [at for at in range(6, 16) if before[at] not in (MASK, token[at]) and p[at] > 0.2]
            x[0, sure + other] = token[sure + other]
            steps, after, changed = steps + 1, after + full, bool(other)
            edits += len(other)
            changed = changed or not full
        capped += after == 5
        assert written(model, prompt, "edit(tau=0.4, edit=0.2, post=5, penalty=1.5)") == ([x[0].tolist()], steps)
    assert edits
    assert capped
    assert capped < 8


def test_edit_raises_its_budget_and_ends():
    canvas = Canvas.answering(prompts(), 9, MASK)
    for _ in denoise(tiny(), canvas, Edit(tau=0.3, post=4), block=3, steps=2):
        assert canvas.budget == 2 + 4
    assert canvas.forwards <= 3 * (2 + 4)
    assert (canvas.tokens != MASK).all()


@BOTH
@pytest.mark.parametrize(
    ("decoder", "base"),
    [
        ("factor(f=0)", "confidence"),
        ("frechet(delta=1)", "confidence"),
        ("entropy_bound(gamma=0)", "entropy"),
        ("klass(tau=1.1)", "confidence"),
        ("klass(epsilon=0)", "confidence"),
        ("credit(tau=0.4, alpha=0)", "threshold(tau=0.4)"),
        ("hierarchy(low=0.4, high=0.4)", "threshold(tau=0.4)"),
        ("edit(tau=0.4, edit=2)", "threshold(tau=0.4)"),
        ("threshold(tau=0.4, sub=0)", "threshold(tau=0.4)"),
        ("threshold(tau=0.4, sub=50)", "threshold(tau=0.4)"),
    ],
)
def test_a_rule_switched_off_is_its_base(kind, cache, decoder, base):
    model = tiny(kind[0], kind[1], shifted=kind[2], sharp=8)
    alike = "klass" in decoder or "threshold" in base  # the others write one token a step, and no share of the steps
    for seed, steps in ((0, None), (1, None), (2, 3 if alike else None)):
        given = [prompts(1, n, seed=seed + n)[0] for n in (3, 6, 4)]
        options = {"cache": cache, "block": 4, "steps": steps}
        assert written(model, given, decoder, **options) == written(model, given, base, **options)


@BOTH
@pytest.mark.parametrize("decoder", DECODERS)
def test_whatever_is_written_is_whole_bounded_and_the_same_alone(kind, cache, decoder):
    model = tiny(kind[0], kind[1], shifted=kind[2])
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    rows, forwards = written(model, given, decoder, cache=cache, block=4, seed=3)
    blocks = 4 if kind[0] == "block" else 3
    assert forwards <= 10 + blocks + (4 * blocks if "edit" in decoder else 0)
    for at, (row, prompt) in enumerate(zip(rows, given, strict=True)):
        assert row[: len(prompt)] == prompt.tolist()
        assert MASK not in row
        assert written(model, [prompt], decoder, cache=cache, block=4, seed=3 + at)[0] == [row]


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("decoder", DECODERS)
def test_blanks_between_given_tokens(decoder, steps):
    model = tiny()
    rows = gapped()
    batch = fill(model, rows, decoder, block=5, steps=steps, seed=4)
    for n, row in enumerate(rows):
        assert (batch[n] != MASK).all()
        assert torch.equal(batch[n][row != MASK], row[row != MASK])
        assert torch.equal(batch[n], fill(model, [row], decoder, block=5, steps=steps, seed=4 + n)[0])


@pytest.mark.parametrize("decoder", [d for d in DECODERS if "edit" not in d])
def test_every_step_gains_a_token(decoder):
    canvas, before = Canvas.answering(prompts(), 10, MASK, torch.arange(3)), torch.full((3,), 10)
    for done in denoise(tiny(), canvas, decoder):
        left = (done.tokens == MASK).sum(1)
        assert ((left < before) | (left == 0)).all()
        before = left


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        ("factor(f=-1)", "f is -1"),
        ("frechet(delta=2)", "delta is 2"),
        ("entropy_bound(gamma=-1)", "gamma is -1"),
        ("klass(epsilon=-1)", "epsilon is -1"),
        ("klass(n=0)", "n is 0"),
        ("credit(alpha=-1)", "alpha is -1"),
        ("credit(beta=2)", "beta is 2"),
        ("credit(gamma=-1)", "gamma is -1"),
        ("hierarchy(low=0.9)", "low is 0.9 and high is 0.76"),
        ("hierarchy(remask=2)", "remask is 2"),
        ("origin(kind='psychic')", "kind is 'psychic'; expected one of origin, maskgit_plus"),
        ("origin(alg_temp=1)", "'origin' has none"),
        ("origin(kind='margin', alg_temp=-1)", "alg_temp is -1"),
        ("origin(eps=1)", "eps is 1"),
        ("edit(edit=-1)", "edit is -1"),
        ("edit(post=-1)", "post is -1"),
        ("edit(penalty=-1)", "penalty is -1"),
        ("first_hitting(tokens=0)", "tokens is 0"),
        ("threshold(sub=-1)", "sub is -1"),
        ("factor(temperature=-1)", "temperature is -1"),
    ],
)
def test_bad_options_are_one_clear_sentence(decoder, words):
    with pytest.raises(ValueError, match=words):
        generate(tiny(), prompts(), 4, decoder)
