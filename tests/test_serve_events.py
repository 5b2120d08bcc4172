"""Steps of several rounds are told together; what somebody waits for is told at once."""

from __future__ import annotations

import os

import pytest

from unveil.serve import worker
from unveil.serve.messages import Admitted, Done, Event, Order, Step, Write, read
from unveil.serve.worker import WAIT, Events

INTERVAL = 1.0  # seconds: many times what a single row waits for


def step(number: int, row: int = 0) -> Step:
    return Step("a", row, number, 1, number, [Write(number, 7, None)], [], number + 1)


class Told:
    """What comes out of the pipe, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interval: float):
        self.now = 100.0
        monkeypatch.setattr(worker.time, "monotonic", lambda: self.now)
        self.out, into = os.pipe()
        os.set_blocking(self.out, False)
        self.events = Events(into, interval)

    def __call__(self, after: float, *events: Event) -> list[Event | Order]:
        """Tell a round's events so many seconds after the last; what is read then."""
        self.now += after
        self.events.tell(events)
        try:
            return [read(each) for each in os.read(self.out, 1 << 16).splitlines()]
        except BlockingIOError:
            return []


def test_steps_wait_for_each_other(monkeypatch):
    told = Told(monkeypatch, INTERVAL)
    admitted = Admitted("a", [0])
    assert told(0, admitted) == [admitted]
    assert told(0, step(1)) == [step(1)]  # somebody waits for the first
    assert told(WAIT / 4, step(2)) == []
    assert told(WAIT / 4, step(3)) == []
    assert told(0.6 * WAIT, step(4)) == [step(2), step(3), step(4)]
    assert told(WAIT / 4, step(5)) == []
    done = Done("a", 0, "length", 6, 1.0, 0.0)
    assert told(0, step(6), done) == [step(5), step(6), done]


def test_the_more_rows_the_longer_and_never_beyond_the_interval(monkeypatch):
    told = Told(monkeypatch, 3 * WAIT)
    two, many = [step(1, 0), step(1, 1)], [step(1, row) for row in range(64)]
    assert told(0, *two) == two
    assert told(1.5 * WAIT, *two) == []
    assert told(0.6 * WAIT, *two) == [*two, *two]
    assert told(2.5 * WAIT, *many) == []
    assert told(0.6 * WAIT, *many) == [*many, *many]


def test_rounds_that_are_slower_are_told_one_by_one(monkeypatch):
    told = Told(monkeypatch, INTERVAL)
    assert all(told(1.1 * WAIT, step(number)) == [step(number)] for number in range(1, 5))


def test_without_an_interval_every_round_is_told(monkeypatch):
    told = Told(monkeypatch, 0.0)
    assert all(told(0, step(number)) == [step(number)] for number in range(1, 5))
    assert told(0) == []
