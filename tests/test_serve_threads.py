"""The number of threads that rounds are computed with follows what was faster, and trying costs little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from unveil.context import Ask, Context, Window
from unveil.serve.threads import SELDOM, SHARE, TRIES, Threads

Pace = Callable[[int, int], float]
"""Seconds of the round of that number, by so many threads."""


@pytest.fixture(autouse=True)
def as_before():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def ask(width: int) -> Ask:
    return Ask(torch.zeros(2, 100, dtype=torch.long), Context(Window(0, width)))


def rounds(threads: Threads, now: list[float], count: int, pace: Pace, width: int = 9) -> list[int]:
    """The threads that each of so many rounds was computed with."""
    found = []
    for number in range(count):
        with threads.suited([ask(width)]):
            found.append(torch.get_num_threads())
            now[0] += pace(number, found[-1])
    return found


def made(most: int = 2) -> tuple[Threads, list[float]]:
    now = [0.0]
    return Threads(most, clock=lambda: now[0]), now


@pytest.mark.parametrize("better", [1, 2])
def test_what_was_faster_is_taken(better):
    threads, now = made()
    used = rounds(threads, now, 300, lambda _, count: 1.0 if count == better else 1.4)
    assert used[:4] == [1, 1, 2, 2]
    assert Counter(used[4:])[better] >= 296 * (1 - TRIES / SELDOM) - TRIES


def test_waking_the_threads_is_not_held_against_them():
    threads, now = made()
    used = rounds(threads, now, 20, lambda number, count: 1.0 if count == 1 else 2.0 if number == TRIES else 0.6)
    assert set(used[2 * TRIES :]) == {2}


def test_sizes_are_told_apart():
    threads, now = made()
    for _ in range(30):
        rounds(threads, now, 1, lambda _, count: float(count), width=2)
        rounds(threads, now, 1, lambda _, count: 1.0 / count, width=90)
    assert rounds(threads, now, 1, lambda *_: 1.0, width=2) == [1]
    assert rounds(threads, now, 1, lambda *_: 1.0, width=90) == [2]


def test_trying_takes_little_of_the_time_however_slow_it_is():
    """Two threads on one free core: many times slower."""
    threads, now = made()
    rounds(threads, now, 2 * TRIES, lambda _, count: 1.0 if count == 1 else 12.0)
    began = now[0]
    used = rounds(threads, now, 5000, lambda _, count: 1.0 if count == 1 else 12.0)
    assert 2 in used
    assert now[0] - began <= 5000 * (1 + SHARE) + TRIES * 12


def test_a_machine_that_changes_is_noticed():
    threads, now = made()
    rounds(threads, now, 200, lambda _, count: 1.0 if count == 1 else 1.5)
    used = rounds(threads, now, 200, lambda _, count: 1.0 if count == 1 else 0.6)
    assert used[-1] == 2
    used = rounds(threads, now, 100, lambda _, count: 1.0 if count == 1 else 3.0)
    assert used[-1] == 1
    assert Counter(used)[2] < 20


def test_one_round_that_was_held_up_changes_nothing():
    threads, now = made()
    rounds(threads, now, 20, lambda _, count: 1.0 if count == 1 else 1.4)
    used = rounds(threads, now, 20, lambda number, _: 50.0 if number == 3 else 1.0)
    assert set(used) == {1}


def test_a_round_that_fails_teaches_nothing():
    threads, now = made()
    with pytest.raises(ZeroDivisionError), threads.suited([ask(9)]):
        now[0] += 1 / 0
    assert not any(size.pace for size in threads.sizes.values())
    assert rounds(threads, now, 5, lambda _, count: float(count)) == [1, 1, 2, 2, 1]
