"""Which rows go on one canvas: alike in options and nearly in length, each at the beginning of a block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..attention import Attention
from .cohort import Cohort, Member
from .memory import room

COHORT = 32  # rows on one canvas at most


def kind(member: Member, first: int, known: int, attention: Attention) -> tuple:
    """Rows of one kind can be written in step from `first` on without one's numbers depending on the other.

    The blocks of those that move are of one width. A row of whose text more than a block is still to be computed would
    make the others compute as much: it comes to them a block later.
    """
    options, rest, size = member.request.options, len(member.tokens) - first, member.request.options.block
    if member.apart:
        return options, member
    if not member.moves or size is None:
        return options, rest, member.blanks
    whole = rest + (first % size if attention.kind == "block" else 0) >= size
    return options, None if whole else rest, first - known > size


@dataclass(frozen=True)
class Place:
    """A row that is new, or has finished a block, and where it goes on."""

    member: Member
    first: int  # position of its next block
    cohort: Cohort | None  # that it comes from


@dataclass
class Seating:
    """What becomes of the rows at the beginning of a block."""

    going: list[Cohort] = field(default_factory=list)  # as they are
    groups: list[list[Member]] = field(default_factory=list)  # on new canvases
    held: list[Member] = field(default_factory=list)  # that wait for company; of whole cohorts nothing is said


def seated(fresh: Iterable[Member], cohorts: Sequence[Cohort], attention: Attention) -> Seating:
    """Put rows together: those of one kind that begin a block now, and those that soon will.

    A cohort's round costs almost as much for one row as for many, so a row waits for others of its kind where these
    are sure to finish their block while its patience lasts, which it has once for all of its life.
    """
    kinds: dict[tuple, list[Place]] = {}
    for member in fresh:
        of = kind(member, member.seat.first, member.seat.known, attention)
        kinds.setdefault(of, []).append(Place(member, member.seat.first, None))
    for cohort in cohorts:
        if cohort.asked is None:
            for member, known, first in cohort.onward():
                kinds.setdefault(kind(member, first, known, attention), []).append(Place(member, first, cohort))
    found = Seating()
    soon = arrivals(cohorts, attention) if kinds else {}
    waiting: list[Place] = []
    parted: dict[int, Cohort] = {}  # each once
    for of, places in kinds.items():
        for group in near(places):
            if soon.get(of, math.inf) <= min(place.member.patience for place in group):
                waiting += group
            elif cohort := whole(group):
                found.going.append(cohort)
            else:
                found.groups.append([place.member for place in group])
                parted |= {id(place.cohort): place.cohort for place in group if place.cohort}
    for cohort in parted.values():
        cohort.part()
    for place in waiting:
        place.member.patience -= 1
        if place.cohort is None or id(place.cohort) in parted:
            found.held.append(place.member)
    return found


def whole(group: Sequence[Place]) -> Cohort | None:
    """The cohort whose rows these are, all that it has; it can go on as it is."""
    cohort = group[0].cohort
    own = cohort is not None and cohort.living == len(group) and all(place.cohort is cohort for place in group)
    return cohort if own else None


def arrivals(cohorts: Iterable[Cohort], attention: Attention) -> dict[tuple, int]:
    """Rounds until rows of a kind are sure to begin a block, of those that are half through with theirs.

    The others will wait themselves, which takes fewer rounds.
    """
    soon: dict[tuple, int] = {}
    for cohort in cohorts:
        if cohort.asked is not None and cohort.moves and 2 * cohort.left <= cohort.canvas.budget:
            for member, known, first in cohort.onward():
                of = kind(member, first, known, attention)
                soon[of] = min(soon.get(of, cohort.left), cohort.left)
    return soon


def near(rows: Sequence[Place]) -> list[list[Place]]:
    """Rows apart that would make each other's canvas too long. Those of one canvas stay together, the most first."""
    units: dict[int, list[Place]] = {}
    for row in rows:
        units.setdefault(id(row.cohort or row), []).append(row)
    groups: list[list[Place]] = []
    for unit in sorted(units.values(), key=lambda unit: (-len(unit), len(unit[0].member.tokens), unit[0].first)):
        into = next((group for group in groups if fit([*group, *unit])), None)
        if into is None:
            groups.append(unit)
        else:
            into += unit
    return groups


def fit(rows: Sequence[Place]) -> bool:
    """Is there room for all on one canvas, in what each has set aside?"""
    lengths = [len(row.member.tokens) for row in rows]
    rest = max(length - row.first for row, length in zip(rows, lengths, strict=True))
    return len(rows) <= COHORT and max(row.first for row in rows) + rest <= room(min(lengths))
