"""Which rows go on one canvas: alike in options and nearly in length, each at the beginning of a block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def seated(
    fresh: Iterable[Member], resting: Sequence[Cohort], attention: Attention
) -> tuple[list[Cohort], list[list[Member]]]:
    """The resting cohorts that go on as they are, and the rows for new ones."""
    kinds: dict[tuple, list[tuple[Member, int, Cohort | None]]] = {}
    for member in fresh:
        of = kind(member, member.seat.first, member.seat.known, attention)
        kinds.setdefault(of, []).append((member, member.seat.first, None))
    for cohort in resting:
        for member, known, first in cohort.onward():
            kinds.setdefault(kind(member, first, known, attention), []).append((member, first, cohort))
    staying, groups = [], []
    for group in (group for alike in kinds.values() for group in near(alike)):
        cohort = group[0][2]
        if cohort is not None and cohort.living == len(group) and all(each[2] is cohort for each in group):
            staying.append(cohort)
        else:
            groups.append([each[0] for each in group])
    for cohort in resting:
        if cohort not in staying:
            cohort.part()
    return staying, groups


def near(rows: list[tuple[Member, int, Cohort | None]]) -> list[list[tuple[Member, int, Cohort | None]]]:
    """Rows apart that would make each other's canvas too long."""
    rows.sort(key=lambda row: (len(row[0].tokens), row[1]))
    groups: list[list[tuple[Member, int, Cohort | None]]] = []
    first = rest = most = 0
    for row in rows:
        length, begins = len(row[0].tokens), row[1]
        first, rest = max(first, begins), max(rest, length - begins)
        if not groups or len(groups[-1]) == COHORT or first + rest > most:
            groups.append([])
            first, rest, most = begins, length - begins, room(length)
        groups[-1].append(row)
    return groups
