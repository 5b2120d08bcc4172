"""A stand-in for the link to an engine, which plays scripted events: for tests of what HTTP makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from unveil.codecs.text import Text
from unveil.codecs.train import train_tokenizer
from unveil.serve.link import Lost
from unveil.serve.messages import Admitted, Done, Event, Load, Ready, Step, Submit, Write

CORPUS = ["hello world 😀 日本語 naïve café\n    return x", "def f(x):\n    return x + 1"] * 3
Script = Callable[[Submit], Iterator[Event | Exception | float]]


def tokenizer(template: str | None = None) -> Text:
    """A byte-level tokenizer of 300 tokens and a mask."""
    text = train_tokenizer(CORPUS, 300)
    text.add_mask()
    text.template = template
    return text


class ToyStream:
    """Plays one request: events, seconds to wait, or errors."""

    def __init__(self, link: ToyLink, order: Submit):
        self.link, self.order, self.closed = link, order, asyncio.Event()
        self.events = iter(link.script(order))

    def __aiter__(self) -> ToyStream:
        return self

    async def __anext__(self) -> Event:
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, float):
                try:
                    await asyncio.wait_for(self.closed.wait(), event)
                except TimeoutError:
                    continue
            if self.closed.is_set():
                raise Lost("the stream is closed")
            assert not isinstance(event, float)
            return event
        raise StopAsyncIteration

    @property
    def ready(self) -> bool:
        """Does an event follow at once, where the link is said to be quick?"""
        following = next(self.events, None) if self.link.quick else None
        if following is None:
            return False
        self.events = chain([following], self.events)
        return not isinstance(following, float | Exception)

    def cancel(self, row: int | None = None) -> None:
        self.link.cancelled.append((self.order.id, row))

    def close(self) -> None:
        if not self.closed.is_set():
            self.link.open -= 1
        self.closed.set()


class ToyLink:
    """What the application reads of a link."""

    def __init__(self, text: Text, **ready: Any):
        assert text.mask_id is not None
        found: dict[str, Any] = {
            "name": "toy",
            "mask_id": text.mask_id,
            "eos_id": text.eos_id,
            "start_id": text.start_id,
            "attention": "leader",
            "block": 4,
            "context": 256,
            "vocab": text.vocab,
            "parameters": 1000,
            "device": "cpu",
            "dtype": "float32",
            "memory": 1 << 20,
        }
        self.text, self.ready = text, Ready(**{**found, **ready})
        self.load = Load(waiting=0, running=0, memory=7, kept=0, rounds=0, passes=0, tokens=0, reused=0)
        self.alive, self.closing, self.lost = True, False, FakeFuture()
        self.waiting = self.running = self.restarts = self.open = 0
        self.orders: list[Submit] = []
        self.cancelled: list[tuple[str, int | None]] = []
        self.error: Exception | None = None  # what submitting raises
        self.quick = False  # are events there before they are asked for?
        self.spoken = text.encode(" return x + 1 😀 hello world naïve")
        self.script: Script = self.writes

    def submit(self, order: Submit) -> ToyStream:
        if self.error is not None:
            raise self.error
        self.orders.append(order)
        self.open += 1
        return ToyStream(self, order)

    def writes(self, order: Submit) -> Iterator[Event | Exception | float]:
        """Every blank from left to right, a token a step, always the same text again."""
        yield Admitted(order.id, [1] * len(order.rows))
        for number, row in enumerate(order.rows):
            yield from self.row(order, number, [self.spoken[i % len(self.spoken)] for i in range(len(row.tokens))])

    def row(self, order: Submit, number: int, spoken: list[int]) -> Iterator[Event]:
        """One row, whose blanks become `spoken`."""
        blanks = [at for at, token in enumerate(order.rows[number].tokens) if token == self.ready.mask_id]
        for step, at in enumerate(blanks, 1):
            level = None if order.top is None else -0.25
            write = Write(at, spoken[step - 1], level, [(spoken[step - 1], -0.25), (9, -1.5)][: order.top or 0])
            yield Step(order.id, number, step, 1, step, [write], [], at + 1)
            if order.ends and spoken[step - 1] == self.ready.eos_id:
                yield Done(order.id, number, "end", step, 0.1, 0.0)
                return
        yield Done(order.id, number, "length", len(blanks), 0.1, 0.0)


class FakeFuture:
    """Has the engine been given up?"""

    def __init__(self) -> None:
        self.over = False

    def done(self) -> bool:
        return self.over
