"""How good the texts are that a model writes: perplexity under a scorer, always with entropy, variety, and likeness.

Shapes: N texts, P tokens of a prompt (the beginning of the text, where there is no prompt), L tokens to write.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..choices import with_options
from ..codecs.spelling import Spelling
from ..codecs.text import Text
from ..denoiser import Denoiser
from .matched import at_entropy
from .problems import Setting
from .samples import entropy, inside, per_block, write
from .texts.bleu import self_bleu
from .texts.embedders import Embedder
from .texts.frontier import frontier
from .texts.measures import Measure, Ratio
from .texts.ngrams import Distinct, Grams, repetition
from .texts.resampling import DRAWS, Estimate, estimate
from .texts.scorer import surprise, surprise_of

LEAST = 10  # texts
FITTED = 2_000_000  # tokens of real text that embedders are fitted to, at most
MATCHED = ("nats", "distinct_2", "self_bleu")


@dataclass(frozen=True)
class Passages:
    """N texts: prompts that are given, and what follows them."""

    rows: Tensor  # (N, P + L)
    first: int  # P

    @property
    def prompts(self) -> Tensor:
        return self.rows[:, : self.first]

    @property
    def length(self) -> int:
        return self.rows.shape[1] - self.first


@dataclass(frozen=True)
class Point:
    """The texts of one number of steps and one temperature, in numbers."""

    steps: int | None  # model calls; None: as many as the decoder likes
    temperature: float
    forwards: int
    figures: Mapping[str, Estimate]
    texts: Sequence[str] = field(repr=False)

    @property
    def perplexity(self) -> float:
        return math.exp(self.figures["nats"].value)


@dataclass(frozen=True)
class Quality:
    """Real text in numbers, and everything that the model wrote."""

    real: Mapping[str, Estimate]
    points: Sequence[Point]

    @property
    def steps(self) -> list[int | None]:
        return list(dict.fromkeys(point.steps for point in self.points))

    def matched(self, steps: int | None, figure: str) -> float | None:
        """A figure at the entropy of real text, read between temperatures; None where no temperature comes near."""
        line = [
            (point.figures["entropy"].value, point.figures[figure].value)
            for point in self.points
            if point.steps == steps and figure in point.figures
        ]
        return at_entropy(line, self.real["entropy"].value)


@dataclass
class Judge:
    """What texts are held against: a scorer with its tokenizer, embedders, and real text."""

    text: Text  # of the model whose tokens are counted
    scorer: Denoiser
    scorer_text: Text
    embedders: Sequence[Embedder]
    real: Passages
    draws: int = DRAWS

    def __post_init__(self):
        self.same, self.spelling = self.text.fingerprint == self.scorer_text.fingerprint, Spelling(self.text)
        self.places = {embed.name: embed(self.told(self.real)) for embed in self.embedders}

    def told(self, given: Passages) -> list[str]:
        """What follows the prompts, as text up to its end; where that begins with a space, it keeps it."""
        kept, rows = self.kept(given), given.rows[:, given.first :]
        triples = zip(given.prompts, rows, kept, strict=True)
        return [self.spelling.behind(front.tolist(), row[here].tolist()) for front, row, here in triples]

    def kept(self, given: Passages) -> Tensor:
        """(N, L) True at what belongs to the texts."""
        return inside(given.rows[:, given.first - 1 :], self.text.eos_id, self.text.bos_id)[:, 1:]

    def nats(self, given: Passages) -> Ratio:
        """Of what follows the prompts under the scorer, in its own tokens; the prompts stand before it."""
        if self.same:
            ends = (self.kept(given).sum(1) + given.first).tolist()
            rows = [row[:end] for row, end in zip(given.rows.tolist(), ends, strict=True)]
            return surprise_of(self.scorer, rows, given.first)
        before = [self.text.decode(row) for row in given.prompts]
        whole = surprise(self.scorer, self.scorer_text, list(map(str.__add__, before, self.told(given))))
        front = surprise(self.scorer, self.scorer_text, before)
        return Ratio(whole.sums - front.sums, whole.counts - front.counts)

    def figures(self, given: Passages) -> dict[str, Estimate]:
        """Everything, with intervals over texts."""
        kept, rows = self.kept(given), given.rows[:, given.first :]
        tokens = [row[here] for row, here in zip(rows, kept, strict=True)]
        lists = [row.tolist() for row in tokens]
        measures: dict[str, Measure] = {
            "nats": self.nats(given),
            "entropy": Ratio.mean(np.array([entropy(row) for row in tokens])),
            "length": Ratio.mean(kept.sum(1).double().numpy()),
            **{f"distinct_{n}": Distinct(Grams.of(lists, n)) for n in (1, 2, 3)},
            "self_bleu": Ratio.mean(self_bleu(lists)),
            "repetition": repetition(Grams.of(lists, 4)),
        }
        if given is not self.real:
            texts = self.told(given)
            for embed in self.embedders:
                measures[f"mauve_style/{embed.name}"] = frontier(embed(texts), self.places[embed.name])
        found = {name: estimate(measure, len(rows), draws=self.draws) for name, measure in measures.items()}
        return {name: each for name, each in found.items() if math.isfinite(each.value) and np.isfinite(each.off).all()}


def passages(documents: Sequence[NDArray[np.int64]], prompt: int, length: int, count: int) -> Passages:
    """Real text as `count` rows, evenly spread, of `prompt` + `length` tokens.

    With `prompt` 0 the beginnings of documents: their first token is given, and a model that begins there writes from
    nothing. Otherwise pieces from anywhere. ValueError when there are fewer than 10.
    """
    if prompt < 0 or length < 2 or count < LEAST:
        raise ValueError(f"expected {LEAST} texts or more of 2 tokens or more, not {count} of {length} after {prompt}")
    first = prompt or 1
    size = first + length
    starts = [
        (number, start)
        for number, row in enumerate(documents)
        for start in range(0, len(row) - size + 1, size if prompt else len(row))
    ]
    if len(starts) < LEAST:
        kind = "pieces" if prompt else "documents"
        raise ValueError(
            f"the real text has {len(starts)} {kind} of {size} tokens; expected at least {LEAST}: lower --length"
            + ("" if prompt else ", or take pieces of longer documents by --prompt")
        )
    count = min(count, len(starts))
    chosen = [starts[i * len(starts) // count] for i in range(count)]
    rows = [torch.as_tensor(documents[number][start : start + size], dtype=torch.long) for number, start in chosen]
    return Passages(torch.stack(rows), first)


def corpus(text: Text, documents: Iterable[NDArray[np.int64]]) -> list[str]:
    """The documents as texts, as many as embedders are to be fitted to."""
    found, size = [], 0
    for row in documents:
        found.append(text.decode(row[: FITTED - size]))
        size += len(row)
        if size >= FITTED:
            break
    return found


def ways(
    model: Denoiser, real: Passages, decoder: str, plain: Setting, steps: Sequence[int], temperatures: Sequence[float]
) -> list[tuple[int | None, float, Setting]]:
    """(model calls, temperature, setting) of everything to be written; numbers of steps that leave none for a block
    are left out. `plain` has cache, guide and block.

    ValueError where none is left.
    """
    wanted: dict[int | None, int | None] = {}
    for each in steps:
        share = per_block(model, real.first, real.length, each, plain.block)
        if share >= 1:
            wanted[each] = share
    if model.attention.kind == "causal" or not steps:
        wanted = {None: None}
    if not wanted:
        raise ValueError(f"steps are {', '.join(map(str, steps))}; expected at least one for each block: raise --steps")
    return [
        (calls, heat, Setting(with_options(decoder, temperature=heat), plain.cache, plain.guide, plain.block, share))
        for calls, share in wanted.items()
        for heat in temperatures
    ]


def written(model: Denoiser, real: Passages, setting: Setting, seed: int) -> tuple[Passages, int]:
    """Texts from the prompts of the real ones, and the model calls they took."""
    rows, forwards = write(model, real.prompts, real.length, setting, seed=seed)
    return Passages(rows, real.first), forwards
