"""The engines of a model and of its adapters as one: each writes with its own weights, all within one memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, replace

from .engine import Engine
from .messages import Cancel, Drained, Event, Load, Ready, Refusal, Submit


class Several:
    """Every adapter is merged into weights of its own, so that its requests are written as if they were alone.

    Passes of different adapters are different calls of the network; those of one are merged as ever. Requests of one
    adapter do not overtake each other, and all together take no more than the memory that the base was given.
    """

    def __init__(self, base: Engine, adapters: Mapping[str, Engine]):
        if base.name in adapters:
            raise ValueError(f"an adapter is called {base.name!r} as its base is; give it another name")
        self.base, self.adapters = base, adapters
        self.engines = [base, *adapters.values()]
        self.memory = base.memory
        for each in adapters.values():
            each.memory = each.orders.memory = self.memory
        self.drained: set[int] = set()
        self.loads: dict[int, Load] = {}
        self.events: list[Event] = []

    def ready(self) -> Ready:
        return replace(self.base.ready(), adapters=list(self.adapters))

    @property
    def idle(self) -> bool:
        """Has nothing to do and nothing to say?"""
        return not self.events and all(each.idle for each in self.engines)

    def submit(self, order: Submit) -> None:
        if order.adapter is not None and order.adapter not in self.adapters:
            there = ", ".join(self.adapters)
            self.events.append(Refusal(order.id, f"no adapter called {order.adapter!r}; there are: {there}"))
            return
        self.engine(order).submit(order)

    def engine(self, order: Submit) -> Engine:
        """The one that writes a request."""
        return self.base if order.adapter is None else self.adapters[order.adapter]

    def cancel(self, order: Cancel) -> None:
        for each in self.engines:
            each.cancel(order)

    def drain(self) -> None:
        for each in self.engines:
            each.drain()

    def step(self) -> list[Event]:
        """One pass for everything that runs, engine by engine, and what came of it."""
        found, self.events = self.events, []
        for number, engine in enumerate(self.engines):
            engine.memory = self.memory - sum(each.used for each in self.engines if each is not engine)
            if engine.idle and not (engine.draining and number not in self.drained):
                continue
            for event in engine.step():
                if isinstance(event, Load):
                    self.loads[number] = event
                    found.append(self.load())
                elif isinstance(event, Drained):
                    self.drained.add(number)
                else:
                    found.append(event)
        self.fit()
        if len(self.drained) == len(self.engines):
            found.append(Drained())
        return found

    def fit(self) -> None:
        """Give up finished prefixes where those of all engines take more than requests leave."""
        kept = sum(each.prefixes.bytes for each in self.engines)
        room = max(self.memory - sum(each.used for each in self.engines), 0)
        if kept > room:
            for each in self.engines:
                each.prefixes.shrink(each.prefixes.bytes * room // kept)

    def load(self) -> Load:
        """How busy all of them are."""
        told = [self.loads.get(number) or each.load() for number, each in enumerate(self.engines)]
        return Load(*map(sum, zip(*map(astuple, told), strict=True)))
