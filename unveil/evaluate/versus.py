"""Results of one model, beside another's on the same items: intervals, paired tests, and what is at chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .intervals import Interval, mcnemar, paired, spread, wilson
from .suite import Part, Result


@dataclass(frozen=True)
class Versus:
    """A figure of the other model on the same items, and what lies between the two."""

    interval: Interval
    difference: Interval | None  # of the first less the other's; None where items are not measured in the same units
    p: float | None  # of McNemar's exact test; None where scores are not 0 and 1


@dataclass(frozen=True)
class Line:
    """One figure of one task."""

    task: str
    figure: str
    main: bool  # is this what the task is about?
    kind: str  # of items; "" for all of them
    items: int
    interval: Interval
    chance: float | None
    versus: Versus | None = None

    @property
    def share(self) -> bool:
        """Is it a share, to be shown in percent?"""
        return not self.figure.startswith(("nats", "bits"))

    @property
    def verdict(self) -> str:
        """What the interval says of guessing; "" where guessing has no known share."""
        if self.chance is None:
            return ""
        if self.chance == 0:
            return "none right" if self.interval.mean == 0 else ""
        if self.interval.low <= self.chance <= self.interval.high:
            return "at chance"
        return "above chance" if self.interval.low > self.chance else "below chance"


def binary(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def interval(result: Result, figure: str) -> Interval:
    """Wilson's of shares, and a bootstrap over items of everything else."""
    values, weights = result.values(figure), result.weights(figure)
    if weights is None and binary(values):
        return wilson(values, np.arange(len(values)))
    return spread(values, weights)


def versus(one: Result, other: Result, figure: str) -> Versus | None:
    """The other's figure and the difference; None where it has none of this name."""
    if figure not in other.part.figures:
        return None
    mine, theirs = one.values(figure), other.values(figure)
    weights, others = one.weights(figure), other.weights(figure)
    apart, p = None, None
    if weights is None and binary(mine) and binary(theirs):
        apart, p = paired(mine, theirs, np.arange(len(mine))), mcnemar(mine, theirs)
    elif weights is None or (others is not None and np.array_equal(weights, others)):
        apart = spread(mine - theirs, weights)
    return Versus(interval(other, figure), apart, p)


def lines(results: Sequence[Result], others: Sequence[Result] | None = None) -> Iterator[Line]:
    """Every figure of every task; figures of kinds of items behind those of all. `others` are on the same items."""
    for number, result in enumerate(results):
        other = others[number] if others else None
        for kind in ("", *sorted(set(result.kinds) - {""})):
            some, theirs = of_kind(result, kind), other and of_kind(other, kind)
            for figure in some.part.figures if not kind else list(some.part.figures)[:1]:
                yield Line(
                    result.task,
                    figure,
                    not kind and figure == next(iter(some.part.figures)),
                    kind,
                    some.items,
                    interval(some, figure),
                    result.chance.get(figure),
                    versus(some, theirs, figure) if theirs else None,
                )


def of_kind(result: Result, kind: str) -> Result:
    """The items of one kind."""
    if not kind:
        return result
    here = [i for i, each in enumerate(result.kinds) if each == kind]
    figures = {name: [values[i] for i in here] for name, values in result.part.figures.items()}
    part = Part(figures, forwards=[result.part.forwards[i] for i in here])
    return replace(result, part=part, kinds=[kind] * len(here))


def at_chance(found: Sequence[Line]) -> str:
    """Which tasks say nothing of a model, in a sentence; "" when there are none with a known chance."""
    asked = [line for line in found if line.main and line.chance is not None]
    if not asked:
        return ""
    named = [line.task for line in asked if line.verdict in ("at chance", "none right")]
    if not named:
        return "No task is at chance: every interval lies off what guessing gets."
    told = ", ".join(dict.fromkeys(named))
    return (
        f"At chance ({len(named)} of {len(asked)}): {told}. Their intervals include what guessing gets, so they say "
        "nothing of what this model has learnt."
    )
