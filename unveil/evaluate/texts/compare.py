"""All statistics of one set of texts or of two, and whether they bear out what is published of diffusion models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bleu import self_bleu
from .collection import Collection
from .embedders import Embedder
from .meaning import coherence, diversity, sentences
from .measures import Measure, Ratio
from .ngrams import Distinct, Entropy, Grams, Zipf, repetition
from .resampling import DRAWS, Difference, Estimate, difference, estimate

ORDERS = (1, 2, 3)
PLAIN = {
    **{f"entropy_{n}": f"entropy of {n}-grams, nats" for n in ORDERS},
    **{f"distinct_{n}": f"distinct-{n}" for n in ORDERS},
    "self_bleu": "self-BLEU",
    "repetition": "repeated 4-grams of a text",
    "zipf": "Zipf exponent",
    "tokens": "tokens of a text",
    "sentences": "sentences of a text",
    "cross_entropy": "nats per token under the scorer",
}


@dataclass(frozen=True)
class Claim:
    """What is published of texts by diffusion models, as compared with autoregressive ones (arXiv 2605.12522)."""

    name: str
    figure: str  # the figures that it speaks of begin so
    sign: int


CLAIMS = (
    Claim("lower n-gram entropy", "entropy_", -1),
    Claim("higher semantic coherence", "coherence/", 1),
    Claim("higher semantic diversity", "diversity/", 1),
)


@dataclass(frozen=True)
class Verdict:
    """What two sets of texts say of a claim about the first as compared with the second."""

    claim: Claim
    signs: Mapping[str, int]  # of each figure's difference: 0 is chance

    @property
    def word(self) -> str:
        """holds, reversed, no difference, mixed, or not concluded where one embedder alone was asked."""
        if "/" in self.claim.figure and len(self.signs) < 2:
            return "not concluded"
        found = set(self.signs.values())
        if len(found) > 1:
            return "mixed"
        return {self.claim.sign: "holds", 0: "no difference"}.get(found.pop(), "reversed")

    def sentence(self, differences: Mapping[str, Difference]) -> str:
        """With the numbers behind it."""
        return f"{self.claim.name}: {self.word}: {self.numbers(differences)}"

    def numbers(self, differences: Mapping[str, Difference]) -> str:
        return ", ".join(f"{short(name)} {differences[name].told}" for name in self.signs)


@dataclass(frozen=True)
class Described:
    """One set of texts in numbers."""

    name: str
    texts: int
    tokens: int
    counted: int  # tokens that n-gram figures are taken over
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Compared:
    """Two sets of texts, and the first less the second."""

    one: Described
    other: Described
    differences: Mapping[str, Difference]
    paired: bool

    @property
    def verdicts(self) -> list[Verdict]:
        found = []
        for claim in CLAIMS:
            signs = {name: each.sign for name, each in self.differences.items() if name.startswith(claim.figure)}
            if signs:
                found.append(Verdict(claim, signs))
        return found


def title(name: str) -> str:
    """A figure's name for people."""
    kind, _, embedder = name.partition("/")
    return f"semantic {kind}, {embedder}" if embedder else PLAIN[name]


def short(name: str) -> str:
    return name.partition("/")[2] or name.replace("entropy_", "H")


def measures(
    given: Collection, budget: int, embedders: Sequence[Embedder], nats: Ratio | None = None
) -> dict[str, Measure]:
    """Every figure of a set. `budget`: tokens that n-grams are counted in; `nats`: under a scorer, and their tokens."""
    cut = given.within(budget)
    grams = {n: Grams.of(cut, n) for n in (*ORDERS, 4)}
    found: dict[str, Measure] = {f"entropy_{n}": Entropy(grams[n]) for n in ORDERS}
    found |= {f"coherence/{embed.name}": coherence(given.texts, embed) for embed in embedders}
    found |= {f"diversity/{embed.name}": diversity(given.texts, embed) for embed in embedders}
    found |= {f"distinct_{n}": Distinct(grams[n]) for n in ORDERS}
    found["self_bleu"] = Ratio.mean(self_bleu(given.tokens))
    found["repetition"] = repetition(Grams.of(given.tokens, 4))
    found["zipf"] = Zipf(grams[1])
    found["tokens"] = Ratio.mean(lengths(given.tokens))
    found["sentences"] = Ratio.mean(lengths([sentences(text) for text in given.texts]))
    if nats is not None:
        found["cross_entropy"] = nats
    return found


def lengths(rows: Sequence[Sequence]) -> NDArray[np.float64]:
    return np.array([len(row) for row in rows], dtype=float)


def describe(
    given: Collection,
    embedders: Sequence[Embedder],
    *,
    budget: int | None = None,
    nats: Ratio | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Described:
    """One set in numbers; figures that do not exist for it are left out."""
    budget = given.size if budget is None else min(budget, given.size)
    found = {}
    for name, measure in measures(given, budget, embedders, nats).items():
        made = estimate(measure, len(given), seed=seed, draws=draws)
        if math.isfinite(made.value) and np.isfinite(made.off).all():
            found[name] = made
    return Described(given.name, len(given), given.size, budget, found)


def contrast(one: Described, other: Described, *, paired: bool = False) -> Compared:
    """The first less the second in every figure that both have. `paired` needs one seed for both, else two."""
    shared = [name for name in one.figures if name in other.figures]
    differences = {name: difference(one.figures[name], other.figures[name], paired=paired) for name in shared}
    return Compared(one, other, differences, paired)


def compare(
    one: Collection,
    other: Collection,
    embedders: Sequence[Embedder],
    *,
    paired: bool = False,
    nats: Sequence[Ratio | None] = (None, None),
    seed: int = 0,
    draws: int = DRAWS,
) -> Compared:
    """Both sets at equal numbers of texts, and for what depends on it at equal numbers of tokens.

    paired  text i of both continues the same prompt: both are resampled alike
    nats    of each set under a scorer, after `even`

    ValueError for pairs that are none.
    """
    if len(one) != len(other):
        fix = "pairs need as many texts on both sides" if paired else "make them even first"
        raise ValueError(f"{one.name} has {len(one)} texts and {other.name} {len(other)}: {fix}")
    budget = min(one.size, other.size)
    options = {"budget": budget, "draws": draws}
    first, second = nats
    return contrast(
        describe(one, embedders, nats=first, seed=2 * seed, **options),
        describe(other, embedders, nats=second, seed=2 * seed + (not paired), **options),
        paired=paired,
    )


def even(one: Collection, other: Collection) -> tuple[Collection, Collection]:
    """As many texts of both, evenly spread over the larger set: self-BLEU and diversity depend on their number."""
    count = min(len(one), len(other))
    return one.first(count), other.first(count)
