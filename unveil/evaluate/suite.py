"""What one model does at one task, item by item: chosen, written or weighed, and kept as it goes.

Items are taken in chunks that depend on nothing but their number, so that a run that goes on gets what one run gets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codecs.text import Text
from ..denoiser import Denoiser
from ..programs import pass_at
from ..tasks import Choosing, Question, Task
from ..tasks import Reading as Weighing
from .bench import token_by_token
from .conditional import Conditional, Pair, Protocol, conditional, encoded
from .lengths import searched
from .likelihood import Mode
from .problems import Outcome, Setting, Subject
from .unfinished import Unfinished

CHUNK = 16  # items between two writes of what is kept
MANY = 200  # items of a task that has no end, unless a limit says otherwise
WINDOW = 512  # tokens of a text that are weighed at once, at most
APART = 1_000_003  # seeds between two answers to one problem
PASSES = (2, 5, 10, 25, 50, 100)  # the k of pass@k, as far as there are samples
MOST = 8  # draws per window of a text: it has many windows
Columns = dict[str, dict[str, list[float]]]
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class How:
    """How a model is asked; options as in `conditional` and `problems.Setting`."""

    mode: Mode = "auto"
    protocol: Protocol = "exact-count"
    draws: int = 32
    decoder: str = "confidence"
    cache: str | None = None
    guide: str | None = None
    block: int | None = None
    steps: int | None = None
    limit: int | None = None
    seed: int = 0
    samples: int = 1  # answers to each problem that is written


@dataclass
class Part:
    """Some items of a task. Lists have an entry for each, in their order."""

    figures: dict[str, list[float]] = field(default_factory=dict)  # the first is what the task is about
    weights: dict[str, list[float]] = field(default_factory=dict)  # of figures that are ratios of sums
    forwards: list[float] = field(default_factory=list)  # model calls that an item needs
    noise: list[float] = field(default_factory=list)  # see `Result.unsure`
    written: list[str] = field(default_factory=list)
    seconds: float = 0.0
    layout: str = ""

    def add(self, other: Part) -> None:
        """Put other items behind these."""
        for mine, theirs in ((self.figures, other.figures), (self.weights, other.weights)):
            for name, values in theirs.items():
                mine.setdefault(name, []).extend(values)
        self.forwards += other.forwards
        self.noise += other.noise
        self.written += other.written
        self.seconds += other.seconds
        self.layout = other.layout or self.layout


@dataclass(frozen=True)
class Result:
    """What a model did at a task. Shapes: N items."""

    model: str
    task: str
    part: Part
    kinds: list[str]  # (N,) of each item
    chance: dict[str, float]  # of figures that guessing has a known share in

    def values(self, figure: str) -> NDArray[np.float64]:
        return np.array(self.part.figures[figure])

    def weights(self, figure: str) -> NDArray[np.float64] | None:
        return np.array(self.part.weights[figure]) if figure in self.part.weights else None

    @property
    def items(self) -> int:
        return len(self.part.forwards)

    @property
    def forwards(self) -> float:
        """Per item."""
        return float(np.mean(self.part.forwards))

    @property
    def unsure(self) -> float | None:
        """The share of choices that other random draws might turn: the two likeliest options lie within two standard
        errors of the draws. None where nothing is drawn."""
        return float(np.mean(self.part.noise)) if any(map(math.isfinite, self.part.noise)) else None


@dataclass
class Candidate:
    """A model that is evaluated."""

    name: str
    model: Denoiser
    text: Text

    def subject(self, task: Task) -> Subject:
        """As the loop writes with it: a parent token by token."""
        model = token_by_token(self.model, self.text) if self.model.attention.kind == "causal" else self.model
        return Subject(model, self.text, task)

    def setting(self, subject: Subject, filling: bool, how: How) -> Setting:
        """What is asked for, with the model's own ways where nothing is."""
        look = subject.look(filling)
        if self.model.attention.kind == "causal":
            ends = "eos(policy='stop')" if self.text.eos_id is not None and not subject.task.measured else None
            return Setting(how.decoder, how.cache or "causal", how.guide or ends, 1, how.steps)
        block = look.block if how.block is None else how.block or None
        return Setting(how.decoder, how.cache or look.cache, how.guide, block, how.steps)


def items(task: object, how: How) -> Sequence[Any]:
    """The items of a task that are asked: all that there are, or as many as the limit says."""
    assert isinstance(task, Task | Choosing | Weighing)
    there = task.available()
    count = min(how.limit or there or MANY, there or math.inf)
    if isinstance(task, Choosing):
        return task.questions(int(count), "test", how.seed)
    if isinstance(task, Weighing):
        return task.texts(int(count), "test", how.seed)
    return task.examples(int(count), "test", how.seed)


def refusal(candidate: Candidate, task: object, asked: Sequence[Any], how: How) -> str | None:
    """Why a model cannot be asked this, in the library's own words; None: it can."""
    try:
        if isinstance(task, Task):
            subject = candidate.subject(task)
            setting = candidate.setting(subject, bool(asked[0].tail), how)
            return subject.refusal(subject.problem(asked[0]), setting)
        parts(candidate, task, asked[:1], 0, replace(how, draws=1))
    except ValueError as error:
        return str(error)
    return None


def evaluate(
    candidate: Candidate,
    name: str,
    task: object,
    asked: Sequence[Any],
    how: How,
    *,
    kept: Unfinished | None = None,
    report: Report | None = None,
) -> Result:
    """Ask a model all items; `kept` is where every chunk goes, and what is there already is not asked again.

    ValueError where the model lacks what the task needs.
    """
    if not len(asked):
        raise ValueError(f"{name} has no items: there is nothing to measure")
    kept = kept or Unfinished()
    found = kept.part(f"{candidate.name} at {name}")
    if not found:
        found.update(done=0, part=asdict(Part()))
    part = Part(**found["part"])
    while found["done"] < len(asked):
        first = found["done"]
        began = time.perf_counter()
        some = parts(candidate, task, asked[first : first + CHUNK], first, how)
        some.seconds = time.perf_counter() - began
        part.add(some)
        found.update(done=min(first + CHUNK, len(asked)), part=asdict(part))
        kept.keep()
        if report:
            report(found["done"], len(asked))
    kinds = [getattr(item, "kind", "") for item in asked]
    return Result(candidate.name, name, part, kinds, chance(task, asked, part))


def chance(task: object, asked: Sequence[Any], part: Part) -> dict[str, float]:
    """What guessing gets: a share of the options, and nothing where answers are written."""
    if isinstance(task, Choosing):
        share = float(np.mean([1 / len(question.options) for question in asked]))
        return dict.fromkeys(part.figures, share)
    if isinstance(task, Task):
        return {name: 0.0 for name, values in part.figures.items() if set(values) <= {0.0, 1.0}}
    return {}


def parts(candidate: Candidate, task: object, some: Sequence[Any], first: int, how: How) -> Part:
    """Some items, of which `first` is the number of the first."""
    if isinstance(task, Choosing):
        return choose(candidate, some, first, how)
    if isinstance(task, Weighing):
        return weigh(candidate, some, first, how)
    assert isinstance(task, Task)
    return write(candidate, task, some, first, how)


def scored(candidate: Candidate, pairs: Sequence[Pair], how: How) -> Conditional:
    options = {"mode": how.mode, "protocol": how.protocol, "block": how.block, "draws": how.draws, "seed": how.seed}
    return conditional(candidate.model, pairs, **options)


def choose(candidate: Candidate, questions: Sequence[Question], first: int, how: How) -> Part:
    """Multiple choice: the option of the least nats in all, per character, and per token.

    Under the protocol diffullama the mean over tokens is what there is, and the one figure.
    """
    pairs = [
        encoded(candidate.text, context, option, key, number)
        for key, question in enumerate(questions, first)
        for number, (context, option) in enumerate(zip(question.contexts, question.options, strict=True))
    ]
    found = scored(candidate, pairs, how)
    part, at = Part(layout=found.layout), 0
    for question in questions:
        here = slice(at, at + len(question.options))
        nats, tokens = found.nats[here].numpy(), found.tokens[here].numpy()
        ways = {"accuracy": nats}
        if found.bound:
            letters = np.array([len(option.strip()) for option in question.options])
            ways |= {"accuracy_per_character": nats / letters, "accuracy_per_token": nats / tokens}
        for name, cost in ways.items():
            part.figures.setdefault(name, []).append(float(int(np.argmin(cost)) == question.gold))
        best, second = (at + int(i) for i in np.argsort(nats, kind="stable")[:2])
        apart, error = found.less(second, best)
        part.noise.append(math.nan if found.exact else float(apart < 2 * error))
        part.forwards.append(float(found.forwards[here].sum()))
        at += len(question.options)
    return part


def write(candidate: Candidate, task: Task, examples: Sequence[Any], first: int, how: How) -> Part:
    """Problems that are written: decoded side by side, judged one by one."""
    subject = candidate.subject(task)
    setting = candidate.setting(subject, bool(examples[0].tail), how)
    part = Part(
        layout=f"{setting.decoder} with {setting.cache}, "
        + (f"blocks of {setting.block}" if setting.block else "one block")
    )
    seeds = [how.seed + first + i for i in range(len(examples))]
    rounds = [
        answers(subject, examples, setting, [seed + turn * APART for seed in seeds]) for turn in range(how.samples)
    ]
    for outs in zip(*rounds, strict=True):
        for name, value in summed(task, outs).items():
            part.figures.setdefault(name, []).append(value)
        part.forwards.append(float(sum(out.forwards for out in outs)))
        part.written.append(outs[0].completion)
    if task.weighed:
        pairs = [encoded(candidate.text, each.prompt, each.answer, key) for key, each in enumerate(examples, first)]
        found = scored(candidate, pairs, how)
        if found.bound:
            part.figures["nats_of_answer"] = found.nats.tolist()
    return part


def answers(subject: Subject, examples: Sequence[Any], setting: Setting, seeds: Sequence[int]) -> list[Outcome]:
    """One answer to each problem, by the best of several lengths where the task has them tried."""
    if rooms := subject.task.rooms():
        return [searched(subject, each, setting, seed, rooms) for each, seed in zip(examples, seeds, strict=True)]
    return subject.solve([subject.problem(example) for example in examples], setting, seeds)


def summed(task: Task, outs: Sequence[Outcome]) -> dict[str, float]:
    """The means of all figures over the answers to one problem, which for code are pass@1, and pass@k beside them."""
    found = {name: float(np.mean([out.figures[name] for out in outs])) for name in outs[0].figures}
    if task.runs_code:
        right = sum(out.score == 1 for out in outs)
        found |= {f"pass@{k}": pass_at(k, [right], len(outs)) for k in PASSES if k <= len(outs)}
    return found


def weigh(candidate: Candidate, texts: Sequence[str], first: int, how: How) -> Part:
    """Texts in windows one after the other, each token given what is before it in its window and one token more.

    ValueError where what comes out is neither a likelihood nor a bound on one.
    """
    room = min(WINDOW, candidate.model.context_length or WINDOW) - 1
    pairs = [pair for number, text in enumerate(texts, first) for pair in windows(candidate.text, text, room, number)]
    found = scored(candidate, pairs, replace(how, draws=min(how.draws, MOST)))
    if not found.bound:
        raise ValueError(
            f"the protocol {how.protocol} gives neither a likelihood nor a bound on one: no text has a perplexity by it"
        )
    part = Part(layout=found.layout)
    totals = np.bincount([pair.option for pair in pairs], found.nats.numpy())[first:]
    forwards = np.bincount([pair.option for pair in pairs], found.forwards.numpy())[first:]
    tokens = np.bincount([pair.option for pair in pairs], found.tokens.numpy())[first:]
    for number, text in enumerate(texts):
        sizes = {
            "bits_per_byte": len(text.encode()),
            "nats_per_token": tokens[number],
            "nats_per_word": len(text.split()),
        }
        for name, size in sizes.items():
            share = totals[number] / (math.log(2) if name.startswith("bits") else 1) / size
            part.figures.setdefault(name, []).append(float(share))
            part.weights.setdefault(name, []).append(float(size))
        part.forwards.append(float(forwards[number]))
    return part


def windows(text: Text, written: str, room: int, number: int) -> Iterator[Pair]:
    """A text as pairs: a token, and the `room` that follow it. Their option is the number of the text."""
    ids = ([] if text.start_id is None else [text.start_id]) + text.encode(written)
    if len(ids) < 2:
        raise ValueError(f"text {number + 1} has fewer than two tokens: there is nothing to weigh")
    for count, at in enumerate(range(0, len(ids) - 1, room)):
        yield Pair(ids[at : at + 1], ids[at + 1 : at + 1 + room], number * 4096 + count, number)
