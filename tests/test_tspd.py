"""TSPD: the decoder on tiny models, its sensor in training and in its file, and the figures of a calibration."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from models import MASK, prompts, tiny
from safetensors.torch import load_file, save_file

from unveil.canvas import Canvas
from unveil.decoders.confidence import Confidence
from unveil.decoders.prophet import Prophet
from unveil.decoders.tspd import Tspd
from unveil.evaluate import calibrate_tspd
from unveil.evaluate.calibrate_tspd import Traces, auc, calibrate, collect, fit_noise, loss, train
from unveil.nn.extrapolation import Noise
from unveil.nn.sensor import Origin, Sensor, Trajectories, features, identity
from unveil.sample import denoise, fill, generate

MODELS = [("full", None, False, "dual"), ("full", None, True, "prefix"), ("block", 4, False, "causal")]
MODELS += [("leader", 4, True, "causal"), ("full", None, False, "recompute")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def sensor(kind: str = "full", trained: int | None = None, block: int = 4, seed: int = 0, **more) -> Sensor:
    """An untrained one."""
    made = Sensor(Origin(16, MASK, kind, trained or 0, block, **more))
    made.initialise(torch.Generator().manual_seed(seed))
    return made.eval().requires_grad_(False)


def synthetic(positions: int = 600, steps: int = 8, seed: int = 0) -> Traces:
    """Confidence rises for right tokens and is noise for wrong ones; entropy follows it loosely."""
    draw = torch.Generator().manual_seed(seed)
    right = torch.rand(positions, generator=draw) < 0.6
    turn = torch.randint(0, steps, (positions, 1), generator=draw)  # a right position finds its token here
    time = torch.arange(steps)
    found = right[:, None] & (time >= turn)
    climb = (0.5 + 0.09 * (time - turn)).clamp(max=0.97)
    confidence = torch.where(found, climb, 0.75 * torch.rand(positions, steps, generator=draw))
    confidence = (confidence + 0.03 * torch.randn(positions, steps, generator=draw)).clamp(0.01, 0.99)
    entropy = (0.6 * (1 - confidence) + 0.1 * torch.rand(positions, steps, generator=draw)).clamp(0, 1)
    final = torch.ones(positions, dtype=torch.long)
    token = torch.where(found, final[:, None], 2 + torch.randint(0, 9, (positions, steps), generator=draw))
    count = torch.randint(1, steps + 1, (positions,), generator=draw)
    known = time < count[:, None]
    return Traces(
        confidence=confidence * known,
        entropy=entropy * known,
        token=token * known,
        count=count,
        position=torch.arange(positions) % 8 / 8,
        prompt=torch.arange(positions) // 8,
        written=final,
        final=final,
        passes=torch.full((positions,), steps),
        vocab=16,
    )


# The decoder


@pytest.mark.parametrize("kind", MODELS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_it_composes_and_rows_are_independent(kind, learned):
    model = tiny(kind[0], kind[1], shifted=kind[2])
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    rule = Tspd(sensor(kind[0], kind[1]) if learned else "", coverage=0.3, tau=0.6)
    batch = generate(model, given, 10, rule, cache=kind[3], block=4, seed=0)
    for row, prompt in enumerate(given):
        alone = generate(model, [prompt], 10, rule, cache=kind[3], block=4, seed=row)[0]
        assert torch.equal(batch[row, : len(alone)], alone)
        assert torch.equal(alone[: len(prompt)], prompt)
        assert (alone != MASK).all()


def test_forwards_are_bounded_and_every_step_writes():
    model = tiny()
    canvas, left = Canvas.answering(prompts(1), 11, MASK), [11]
    for step in denoise(model, canvas, Tspd(sensor()), block=4):
        left.append(int((step.tokens == MASK).sum()))
    assert all(b < a for a, b in zip(left, left[1:], strict=False))
    assert left[-1] == 0
    assert canvas.forwards <= 11


def test_what_was_given_stays():
    rows = [prompts(1, n, seed=n)[0] for n in (9, 12)]
    for row in rows:
        row[3:6] = row[-1] = MASK
    for row, out in zip(rows, fill(tiny(), rows, Tspd(sensor()), block=4), strict=True):
        assert torch.equal(out[row != MASK], row[row != MASK])
        assert (out != MASK).all()


@pytest.mark.parametrize("seed", range(4))
def test_rules_switched_off_leave_the_base_decoder(seed):
    model, given = tiny(seed=seed, sharp=12), prompts(seed=seed)
    plain = generate(model, given, 12, "threshold(tau=0.4)", block=6)
    off = "tspd(tau=0.4, coverage=1.1, veto=False)"
    assert torch.equal(generate(model, given, 12, off, block=6), plain)
    assert torch.equal(generate(model, given, 12, "tspd(tau=0.4, ce=False)", block=6), plain)
    ahead = generate(model, given, 12, "threshold(tau=0.4, extrapolate=True)", block=6)
    assert torch.equal(generate(model, given, 12, "tspd(tau=0.4)", block=6), ahead)
    one = generate(model, given, 12, "confidence", block=6)
    nothing = Tspd(sensor(block=6), theta=1.1, ce=False)
    assert torch.equal(generate(model, given, 12, nothing, block=6), one)
    still = Tspd(sensor(block=6), theta=1.1, coverage=2.0)
    assert torch.equal(generate(model, given, 12, still, block=6), one)


def test_a_theta_of_zero_writes_a_block_at_once():
    model = tiny()
    canvas = Canvas.answering(prompts(2), 8, MASK)
    assert sum(1 for _ in denoise(model, canvas, Tspd(sensor(), theta=0.0, ce=False), block=4)) == 2


def test_a_draw_is_not_final_where_it_is_not_the_likeliest_token():
    model, rule = tiny(sharp=6), Tspd(sensor(), theta=0.0, ce=False, temperature=1.5)
    canvas = Canvas.answering(prompts(1), 8, MASK, torch.zeros(1, dtype=torch.long))
    steps = sum(1 for _ in denoise(model, canvas, rule, block=8 // 2))
    assert 2 < steps <= 8


# The sensor


def test_it_has_1985_parameters():
    assert sum(p.numel() for p in sensor().parameters()) == 1985


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("kind", ["full", "leader"])
def test_decoding_sees_what_training_saw(kind, reset):
    block = 4 if kind == "leader" else None
    model, net = tiny(kind, block, shifted=kind == "leader", sharp=8), sensor(kind, block, reset=reset)
    given = [prompts(1, n, seed=n)[0] for n in (3, 6)]

    class Spy(Confidence):
        def enter(self, canvas):
            self.paths = Trajectories(net, canvas)

        def write(self, canvas, seen):
            score = self.paths.follow(canvas, seen)
            row, place = seen.places
            for b, i, s in zip(row.tolist(), place.tolist(), score.view(-1)[seen.read].tolist(), strict=True):
                said.setdefault((b, i), []).append(s)
            return super().write(canvas, seen)

    said = {}
    traces = collect(model, given, 8, 4, Spy())
    scores = net(traces.features, traces.token).sigmoid()
    for b, prompt in enumerate(given):
        for i in range(8):
            at = b * 8 + i
            assert len(said[b, len(prompt) + i]) == int(traces.count[at])
            seen = torch.tensor(said[b, len(prompt) + i])
            torch.testing.assert_close(seen, scores[at, : len(seen)], atol=1e-5, rtol=0)


def test_momentum_is_the_moving_mean_of_differences():
    c = torch.tensor([[0.5, 0.7, 0.6]])
    said = features(c, c, torch.tensor([0.25]))[0]
    torch.testing.assert_close(said[:, 2], torch.tensor([0.0, 0.06, 0.7 * 0.06 - 0.3 * 0.1]))
    assert said[:, 3].tolist() == [0.25] * 3


def test_it_comes_back_from_its_file(tmp_path):
    model, given = tiny(), prompts()
    made = train(synthetic(), Origin(16, MASK, "full", 0, 4, noise=(0.1, 0.2, 0.3)), 0, 1, 5, "momentum")
    path = made.save(tmp_path / "deep" / "sensor.safetensors")
    again = Sensor.load(path)
    assert again.origin == made.origin
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True))
    rule = Tspd(str(path))
    assert rule.trend.noise == Noise(0.1, 0.2, 0.3)
    assert Tspd(str(path), noise=(1.0, 1.0, 1.0)).trend.noise == Noise(1.0, 1.0, 1.0)
    assert torch.equal(generate(model, given, 8, rule, block=4), generate(model, given, 8, Tspd(made), block=4))
    assert [p.name for p in path.parent.iterdir()] == ["sensor.safetensors"]


def test_files_that_are_no_sensor(tmp_path):
    with pytest.raises(ValueError, match="there is no sensor .*absent: make one with `unveil calibrate tspd`"):
        Tspd(str(tmp_path / "absent"))
    path = sensor().save(tmp_path / "sensor")
    tensors, about = load_file(path), {"format": "unveil sensor", "version": "1"}
    for wrong, words in [
        ({}, "is not a sensor"),
        ({**about, "version": "7"}, "a sensor of version 7, and version 1 is read"),
        (about, "does not say what it was trained for"),
    ]:
        save_file(tensors, path, wrong)
        with pytest.raises(ValueError, match=words):
            Tspd(str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not a sensor, or damaged"):
        Tspd(str(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention": "leader", "trained": 4}, "leader attention in blocks of 4.*full attention.*calibrate tspd"),
        ({"mask_id": 3}, "mask token 3, .* mask token 15: run `unveil calibrate tspd`"),
        ({"vocab": 99}, "vocabulary of 99 tokens, and this model has 16: run `unveil calibrate tspd`"),
        ({"block": 8}, "blocks of 8 positions, and these have 4: decode with block=8, or run `unveil calibrate tspd`"),
        ({"block": 3}, "blocks of 3 positions, and these have 4"),
    ],
)
def test_a_sensor_for_another_model_is_refused(change, words):
    net = sensor()
    net.origin = replace(net.origin, **change)
    with pytest.raises(ValueError, match=words):
        generate(tiny(), prompts(), 8, Tspd(net), block=4)


def test_a_last_block_may_be_shorter():
    assert generate(tiny(), prompts(), 7, Tspd(sensor()), block=4).shape == (3, 13)
    assert generate(tiny(), prompts(), 3, Tspd(sensor())).shape == (3, 9)


def test_weights_can_be_told_apart():
    net, model = sensor(identity=identity(tiny())), tiny()
    net.check_identity(model)
    net.check_identity(model.bfloat16())
    with pytest.raises(ValueError, match="other weights"):
        net.check_identity(tiny(seed=1))
    for decoder in (Tspd(net), Prophet(inner=Tspd(net))):
        with pytest.raises(ValueError, match="other weights"):
            generate(tiny(seed=1), prompts(), 7, decoder, block=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"theta": -1}, "theta is -1"),
        ({"kappa": -1}, "kappa is -1"),
        ({"noise": (1.0, 0.0, 1.0)}, "noise is .*three variances"),
        ({"temperature": -1}, "temperature is -1"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        Tspd(**options)


# Calibration


def test_traces_of_one_token_a_step():
    model = tiny()
    given = [prompts(1, n, seed=n)[0] for n in (2, 7, 5)]
    traces = collect(model, given, 8, 4, Confidence(), rows=2)
    assert (traces.written.view(3, 8) == torch.stack([generate(model, [p], 8, block=4)[0][-8:] for p in given])).all()
    counts = traces.count.view(6, 4).sort().values
    assert (counts == torch.tensor([1, 2, 3, 4])).all()  # one position of each block is written in each step
    last = traces.token.gather(1, traces.count[:, None] - 1)[:, 0]
    assert torch.equal(last, traces.final)
    assert traces.right[torch.arange(24), traces.count - 1].all()
    assert traces.position.view(6, 4).tolist() == [[0, 0.25, 0.5, 0.75]] * 6
    assert traces.prompt.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert (traces.passes == 8).all()
    assert ((traces.entropy >= 0) & (traces.entropy <= 1)).all()
    assert (traces.confidence[~traces.known] == 0).all()


def test_it_learns_what_final_tokens_look_like():
    seen, tested = synthetic(), synthetic(200, seed=1)
    origin = Origin(16, MASK, "full", 0, 8)
    made = train(seen, origin, 0, updates=250)
    good = calibrate_tspd.area(made, tested)
    assert good > 0.9
    blind = calibrate_tspd.area(train(seen, origin, 0, updates=250, without="confidence"), tested)
    assert blind < good
    one, other = (train(seen, origin, 3, epochs=1, updates=5).state_dict().values() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_loss_written_plainly():
    torch.manual_seed(0)
    score, right, count = torch.randn(5, 4), torch.rand(5, 4) < 0.5, torch.tensor([4, 2, 1, 3, 0])
    known = torch.arange(4) < count[:, None]
    told = late = false = 0.0
    for i in range(5):
        alive, lived = 1.0, 0.0
        for t in range(int(count[i])):
            s, y = torch.sigmoid(score[i, t]), bool(right[i, t])
            told += float(-(s.log()) if y else -3 * (1 - s).log())
            fixed = float(s > 0.5)
            lived += alive
            false += alive * fixed * (not y)
            alive *= 1 - fixed
        late += lived / max(1, int(count[i]))
    expected = told / int(count.sum()) + 0.05 * late / 5 + false / 5
    assert abs(float(loss(score, right & known, known)) - expected) < 1e-5


def test_the_action_passes_the_gradient_of_its_probability():
    score = torch.tensor([[0.3, -0.2]], requires_grad=True)
    known, right = torch.tensor([[True, True]]), torch.tensor([[True, True]])
    loss(score, right, known).backward()
    s = score.detach().sigmoid()[0]
    told = (s - 1) / 2  # of the cross-entropy
    late = torch.tensor([-0.05 / 2, 0.0]) * s * (1 - s)  # d/ds_1 of 0.05 (1 + (1 - a_1)) / 2
    assert score.grad is not None
    torch.testing.assert_close(score.grad[0], told + late)


def test_the_area_under_the_curve():
    assert auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])) == 0.75
    assert auc(torch.tensor([0.5, 0.5]), torch.tensor([False, True])) == 0.5


def test_noise_is_found_again():
    draw, noise, count = torch.Generator().manual_seed(0), (0.08, 0.01, 0.3), 1500
    level, slope, out = torch.zeros(count), torch.zeros(count), []
    for _ in range(12):
        kicks = torch.randn(3, count, generator=draw)
        level, slope = level + slope + noise[0] ** 0.5 * kicks[0], 0.9 * slope + noise[1] ** 0.5 * kicks[1]
        out.append(level + noise[2] ** 0.5 * kicks[2])
    traces = synthetic(count, 12)
    everything = torch.full((count,), 12)
    ones = torch.ones(count, 12, dtype=torch.long)
    found = fit_noise(replace(traces, confidence=torch.stack(out, 1).sigmoid(), token=ones, count=everything))
    for got, true in zip(found, noise, strict=True):
        assert 0.6 < got / true < 1.6


@pytest.mark.parametrize("kind", [("full", None, False), ("leader", 4, True)], ids=str)
def test_a_calibration_from_beginning_to_end(kind, tmp_path):
    model = tiny(kind[0], kind[1], shifted=kind[2])
    given = [prompts(1, 3 + n % 3, seed=n)[0] for n in range(24)]
    heard = []
    net, found = calibrate(
        model, given, 8, 4, ablate=kind[0] == "full", updates=20, report=lambda done, of: heard.append((done, of))
    )
    assert heard[-1] == (48, 48)
    assert net.origin.identity == identity(model)
    assert (net.origin.attention, net.origin.block, net.origin.vocab) == (kind[0], 4, 16)
    assert found.prompts == 24
    assert found.forwards <= found.vanilla == 8
    assert 0 < found.right < 1
    assert 0 < found.agreement <= 1
    assert set(found.without) == ({"confidence", "entropy", "momentum", "position"} if kind[0] == "full" else set())
    assert asdict(found)["noise"] == net.origin.noise
    path = str(net.save(tmp_path / "sensor.safetensors"))
    assert generate(model, given[:2], 8, f"tspd(sensor={path!r})", block=4).shape == (2, 12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: calibrate(m, list(prompts(3)), 8, 4), "traces of at least 20 prompts, got 3"),
        (lambda m: calibrate(m, list(prompts(20)), 2, 2), "at least 50 predictions that are final and 50 that are not"),
        (lambda m: calibrate(m, list(prompts(20)), 0, 2), "length and a block of at least one"),
        (lambda m: calibrate(m, list(prompts(20, 0)), 4, 2), "a prompt is empty"),
    ],
)
def test_too_few_traces_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(tiny())
