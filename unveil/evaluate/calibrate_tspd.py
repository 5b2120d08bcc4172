"""Train the sensor of TSPD for one model: traces of its own decoding, a network, one more round under what it learnt.

Reconstruction of arXiv 2605.30753, whose training was not public in detail. Shapes: P positions of all prompts,
T predictions of each, at most as many as a block has positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..canvas import Canvas
from ..decoders import Decoder
from ..decoders.confidence import Confidence
from ..decoders.tspd import Tspd
from ..denoiser import Denoiser
from ..nn.extrapolation import EDGE, Noise, Trend, log_odds
from ..nn.sensor import FEATURES, Origin, Sensor, features, identity
from ..sample import denoise

LEAST = 20  # prompts: fewer say little about the next one
WRONG = 50  # predictions that were not final, for the sensor to learn what those look like
HELD_OUT = 5  # one prompt of so many is kept for the figures
NEGATIVES = 3.0  # weight of a prediction that was not final
LATE, FALSE = 0.05, 1.0  # price of a prediction that was waited for, and of one that was fixed and not final
BATCH = 4096  # positions at most
UPDATES = 600  # at least
RATE = 0.01  # of the first update; it falls to 0
FITTED = 2048  # positions that the noise is fitted to
LEAST_NOISE = 1e-4


@dataclass(frozen=True)
class Traces:
    """What was said of every position, prediction by prediction, until it was written; zeros after that."""

    confidence: Tensor  # (P, T) probability of the best token
    entropy: Tensor  # (P, T) in shares of ln V
    token: Tensor  # (P, T) the best token
    count: Tensor  # (P,) predictions of the position
    position: Tensor  # (P,) within its block, in shares of it
    prompt: Tensor  # (P,) which prompt it belongs to
    written: Tensor  # (P,) the token that was written
    final: Tensor  # (P,) the token that is written at one token a step
    passes: Tensor  # (P,) predictions that its prompt took in all
    vocab: int

    @property
    def known(self) -> Tensor:
        """(P, T) True where there was a prediction."""
        return torch.arange(self.token.shape[1]) < self.count[:, None]

    @property
    def right(self) -> Tensor:
        """(P, T) was the best token the final one?"""
        return (self.token == self.final[:, None]) & self.known

    @property
    def features(self) -> Tensor:
        """(P, T, 4)"""
        return features(self.confidence, self.entropy, self.position)

    def among(self, prompts: Tensor) -> Traces:
        """Those of some prompts."""
        kept = torch.isin(self.prompt, prompts)
        return replace(self, **{name: value[kept] for name, value in vars(self).items() if isinstance(value, Tensor)})

    def joined(self, other: Traces) -> Traces:
        """Both, one after the other."""
        pairs = {name: (value, getattr(other, name)) for name, value in vars(self).items()}
        made = {name: torch.cat(pair) for name, pair in pairs.items() if isinstance(pair[0], Tensor)}
        return replace(self, **made)


@dataclass(frozen=True)
class Report:
    """How a calibration went. Areas under the curve are on held-out prompts: 0.5 is chance, 1 is perfect."""

    prompts: int  # of which one in five was held out
    predictions: int  # that the sensor was trained on
    right: float  # share of them that were final
    auc: float  # of the sensor, over predictions of decoding one token a step
    policy: float  # the same over predictions of decoding with the sensor; nan when all or none of them are final
    confidence: float  # the same as `auc` for the confidence alone, without a sensor
    without: dict[str, float]  # `auc` of sensors that were trained without one feature
    noise: tuple[float, float, float]  # fitted variances of level, slope and reading
    forwards: float  # passes per held-out prompt with the sensor and its defaults
    vanilla: float  # passes per held-out prompt at one token a step
    agreement: float  # share of held-out tokens that are the same in both


def calibrate(
    model: Denoiser,
    prompts: Sequence[Tensor],
    length: int,
    block: int,
    seed: int = 0,
    *,
    cache: str = "recompute",
    guide: str | None = None,
    rows: int = 16,
    reset: bool = False,
    ablate: bool = True,
    epochs: int = 5,
    updates: int = UPDATES,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Sensor, Report]:
    """A sensor for `model`, to be saved with `Sensor.save`, and how good it is.

    prompts  one (n,) tensor each, of the kind that will be decoded; at least 20, and 2,000 would not be too many
    length   positions to write after each
    block    positions per block, as it will be decoded
    seed     of the network's first weights, the order of training and the choice of held-out prompts
    cache, guide   as it will be decoded
    rows     prompts decoded together
    reset    whether the sensor forgets a position when its best token changes
    ablate   train four more sensors, each without one feature, for the report
    epochs, updates   of training: so many passes over the traces, and at least so many steps
    report   called with how many decodings are done, and of how many

    ValueError for too few prompts, and for a model whose predictions are all (or never) final.
    """
    if len(prompts) < LEAST:
        raise ValueError(f"calibration needs traces of at least {LEAST} prompts, got {len(prompts)}")
    if length < 1 or block < 1:
        raise ValueError(f"expected a length and a block of at least one position, got {length} and {block}")
    if min(map(len, prompts)) == 0:
        raise ValueError("a prompt is empty; expected at least one token in each")
    block = min(block, length) if model.attention.kind != "block" else block
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    held = order[: -(-len(prompts) // HELD_OUT)].sort().values
    used = order[len(held) :].sort().values
    total = 2 * len(prompts)  # decodings

    def watch(which: Tensor, decoder: Decoder, final: Tensor | None, done: int) -> Traces:
        def told(count: int) -> None:
            if report:
                report(done + count, total)

        some = [prompts[i] for i in which.tolist()]
        found = collect(model, some, length, block, decoder, cache=cache, guide=guide, rows=rows, report=told)
        found = replace(found, prompt=which[found.prompt])
        return found if final is None else replace(found, final=final)

    first = watch(torch.arange(len(prompts)), Confidence(), None, 0)
    taught, tested = first.among(used), first.among(held)
    enough(taught)
    look = model.attention
    kind = Origin(first.vocab, model.mask_id, look.kind, look.block or 0, block, identity(model), reset)
    kind = replace(kind, noise=fit_noise(taught))
    sensor = train(taught, kind, seed, epochs, updates)
    # Decoding with the sensor leads to texts that one token a step never sees: it learns from those too.
    taught = taught.joined(watch(used, Tspd(sensor), taught.final, len(prompts)))
    sensor = train(taught, kind, seed, epochs, updates)
    fast = watch(held, Tspd(sensor), tested.final, len(prompts) + len(used))
    without = dict[str, float]()
    for name in FEATURES if ablate else ():
        without[name] = area(train(taught, kind, seed, epochs, updates, name), tested)
    return sensor, Report(
        prompts=len(prompts),
        predictions=int(taught.count.sum()),
        right=float(taught.right.sum() / taught.count.sum()),
        auc=area(sensor, tested),
        policy=area(sensor, fast),
        confidence=auc(tested.confidence[tested.known], tested.right[tested.known]),
        without=without,
        noise=kind.noise,
        forwards=float(fast.passes.float().mean()),
        vanilla=float(tested.passes.float().mean()),
        agreement=float((fast.written == fast.final).float().mean()),
    )


def collect(
    model: Denoiser,
    prompts: Sequence[Tensor],
    length: int,
    block: int,
    decoder: Decoder,
    *,
    cache: str = "recompute",
    guide: str | None = None,
    rows: int = 16,
    report: Callable[[int], None] | None = None,
) -> Traces:
    """Decode and note what was said. Prompts are numbered from 0; final is what this decoder writes."""
    parts = []
    for start in range(0, len(prompts), rows):
        some = list(prompts[start : start + rows])
        canvas = Canvas.answering(some, length, model.mask_id, torch.zeros(len(some), dtype=torch.long))
        first, cells = canvas.first.to(canvas.tokens.device), len(some) * length
        confidence = torch.zeros(cells, block, device=canvas.tokens.device)
        entropy, token = torch.zeros_like(confidence), torch.zeros_like(confidence, dtype=torch.long)
        count, position = token[:, 0].clone(), confidence[:, 0].clone()
        vocab = 0
        for _ in denoise(model, canvas, decoder, cache=cache, block=block, guide=guide):
            seen = canvas.latest
            assert seen is not None
            row, place = seen.places
            at, vocab = row * length + place - first[row], seen.logits.shape[1]
            now = at, count[at]
            confidence[now] = seen.confidence.view(-1)[seen.read]
            entropy[now] = seen.entropy.view(-1)[seen.read] / math.log(vocab)
            token[now] = seen.best.reshape(-1)[seen.read]
            position[at] = (place - canvas.starts.to(place.device)[row]) / block
            count[at] += 1
        here = first[:, None] + torch.arange(length, device=first.device)
        written = canvas.tokens.gather(1, here).view(-1)
        prompt = torch.arange(start, start + len(some)).repeat_interleave(length)
        passes = canvas.taken.repeat_interleave(length)
        columns = confidence, entropy, token, count, position, prompt, written, written, passes
        parts.append(Traces(*(column.cpu() for column in columns), vocab=vocab))
        if report:
            report(min(start + rows, len(prompts)))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    return whole


def enough(traces: Traces) -> None:
    """ValueError unless there are final and other predictions to tell apart."""
    right, all_ = int(traces.right.sum()), int(traces.count.sum())
    if min(right, all_ - right) < WRONG:
        raise ValueError(
            f"calibration needs at least {WRONG} predictions that are final and {WRONG} that are not, got {right} and "
            f"{all_ - right}: give more prompts, or a model and prompts that suit each other"
        )


def train(
    traces: Traces, origin: Origin, seed: int, epochs: int = 5, updates: int = UPDATES, without: str | None = None
) -> Sensor:
    """A sensor of these traces; `without` leaves a feature out."""
    generator = torch.Generator().manual_seed(seed)
    sensor = Sensor(origin)
    sensor.initialise(generator)
    said, known, right = traces.features, traces.known, traces.right
    sensor.mean, sensor.scale = said[known].mean(0), said[known].std(0).clamp(min=1e-3)
    if without is not None:
        sensor.scale[FEATURES.index(without)] = torch.inf
    size = min(BATCH, max(64, len(known) // 32))
    epochs = max(epochs, -(-updates * size // len(known)))
    optimiser = torch.optim.AdamW(sensor.parameters(), lr=RATE)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, epochs * -(-len(known) // size))
    with torch.enable_grad():
        for _ in range(epochs):
            for some in torch.randperm(len(known), generator=generator).split(size):
                longest = max(1, int(traces.count[some].max()))
                now = some[:, None], torch.arange(longest)
                optimiser.zero_grad()
                loss(sensor(said[now], traces.token[now]), right[now], known[now]).backward()
                optimiser.step()
                falling.step()
    return sensor.eval().requires_grad_(False)


def loss(score: Tensor, right: Tensor, known: Tensor) -> Tensor:
    """Of (P, T) log-odds: cross-entropy, predictions that are not final counting three times, and survival.

    A position lives on while it is not fixed: a = [s > 1/2], with the gradient of s; u_t = prod_{k<t} (1 - a_k).
    Survival costs 0.05 mean_t u_t + sum_t u_t a_t [not final].
    """
    weight = torch.where(right, 1.0, NEGATIVES) * known
    told = F.binary_cross_entropy_with_logits(score, right.float(), weight, reduction="sum") / known.sum()
    s = score.sigmoid()
    fixed = ((s > 0.5).float() - s.detach() + s) * known
    alive = torch.cat([torch.ones_like(s[:, :1]), (1 - fixed).cumprod(1)[:, :-1]], 1) * known
    late = alive.sum(1) / known.sum(1).clamp(min=1)
    false = (alive * fixed * ~right).sum(1)
    return told + (LATE * late + FALSE * false).mean()


def fit_noise(traces: Traces) -> tuple[float, float, float]:
    """Variances of level, slope and reading under which the traces are likeliest (maximum likelihood).

    Confidences at the edge, where log-odds are cut off, say nothing about noise and are left out.
    """
    some = (traces.count >= 3).nonzero()[:, 0]
    some = some[:: max(1, len(some) // FITTED)]
    if len(some) == 0:
        return Origin.noise
    reading = log_odds(traces.confidence[some]).double()
    inside = (traces.confidence[some] > EDGE) & (traces.confidence[some] < 1 - EDGE) & traces.known[some]
    same = traces.token[some, 1:] == traces.token[some, :-1]
    logs = torch.tensor(Origin.noise, dtype=torch.float64).log()
    with torch.enable_grad():
        logs.requires_grad_()
        optimiser = torch.optim.LBFGS([logs], max_iter=60, line_search_fn="strong_wolfe")

        def step() -> float:
            optimiser.zero_grad()
            cost = unlikelihood(reading, inside, same, Noise(*logs.exp().clamp(min=LEAST_NOISE)))
            cost.backward()
            return float(cost.detach())

        optimiser.step(step)
    level, slope, blur = logs.detach().exp().clamp(min=LEAST_NOISE).tolist()
    return level, slope, blur


def unlikelihood(reading: Tensor, inside: Tensor, same: Tensor, noise: Noise) -> Tensor:
    """Mean nats of (P, T) readings, each under the forecast from those before it, begun anew at every new token."""
    trend, total = Trend.begin(reading[:, 0]), reading.new_zeros(())
    counted = same & inside[:, 1:] & inside[:, :-1]
    for t in range(1, reading.shape[1]):
        forecast, now = trend.ahead(noise), reading[:, t]
        total = total + (forecast.surprise(now, noise) * counted[:, t - 1]).sum()
        columns = torch.where(same[:, t - 1, None], forecast.read(now, noise).columns, Trend.begin(now).columns)
        trend = Trend.of(columns)
    return total / counted.sum().clamp(min=1)


def area(sensor: Sensor, traces: Traces) -> float:
    """The area under the curve of a sensor over some traces."""
    score = sensor(traces.features, traces.token)
    return auc(score[traces.known], traces.right[traces.known])


def auc(score: Tensor, label: Tensor) -> float:
    """How often a True has a higher score than a False, ties counting half; nan where one of them is missing."""
    yes, no = score[label], score[~label].sort().values
    if len(yes) == 0 or len(no) == 0:
        return math.nan
    below, upto = torch.searchsorted(no, yes), torch.searchsorted(no, yes, right=True)
    return float((below + upto).double().mean() / 2 / len(no))
