"""The engine's process: orders come in on standard input, events go out on standard output, a line of JSON each."""

from __future__ import annotations

import argparse
import ctypes
import logging
import math
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch

from .. import hub
from .engine import Engine
from .messages import Admitted, Cancel, Drained, Event, Order, Refusal, Step, Submit, line, read
from .several import Several

log = logging.getLogger("unveil.worker")
TIDY = 5.0  # seconds between two returns of unused memory to the system
WAIT = 0.003  # seconds that a step may wait for each row told of: telling one takes some 0.1 ms of the other processes


class Orders:
    """The lines of a pipe, taken without waiting for them or with."""

    def __init__(self, pipe: int):
        self.pipe = pipe
        self.rest = b""
        self.ended = False  # the other side is gone, or wants this one to go

    def take(self, wait: bool) -> list[Order]:
        """The orders that have come; with `wait`, at least one unless the pipe ends."""
        found: list[Order] = []
        while not self.ended and select.select([self.pipe], [], [], None if wait and not found else 0)[0]:
            chunk = os.read(self.pipe, 1 << 18)
            self.ended = not chunk
            *whole, self.rest = (self.rest + chunk).split(b"\n")
            for each in whole:
                order = read(each)
                assert isinstance(order, Order)
                found.append(order)
        return found


class Events:
    """Tells events over a pipe, the steps of several rounds at once.

    To tell a step wakes the HTTP process and then a client, which takes processor time from the rounds. So steps wait
    for those of later rounds, the longer the more rows are told of, and for `interval` seconds at most. Anything else
    is told at once, with the steps that wait, and so is the step after an admission, for which somebody waits.
    """

    def __init__(self, pipe: int, interval: float = 0.0):
        self.pipe, self.interval = pipe, interval
        self.held: list[Event] = []
        self.last = -math.inf  # when something was told
        self.eager = False  # do the next steps not wait?

    def tell(self, events: Sequence[Event]) -> None:
        """Write the events of a round, now or with later ones."""
        self.held += events
        now = time.monotonic()
        urgent = self.eager or not all(isinstance(event, Step) for event in events)
        if self.held and (urgent or now - self.last >= min(len(events) * WAIT, self.interval)):
            self.write()
            self.last = now
        if events:
            self.eager = any(isinstance(event, Admitted) for event in events)

    def write(self) -> None:
        """Write what is held, all at once."""
        data = memoryview(b"".join(map(line, self.held)))
        self.held = []
        while data:
            data = data[os.write(self.pipe, data) :]


class Heap:
    """Gives back to the system what the allocator holds and nobody uses.

    Rounds make and let go tensors of ever other sizes, and glibc keeps the pieces: without this a process grows by
    some tens of MiB over thousands of requests and looks as if it leaked. Elsewhere nothing is done.
    """

    def __init__(self):
        self.trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self.last = time.monotonic()

    def tidy(self) -> None:
        """Every few seconds: it takes some milliseconds."""
        if self.trim is not None and time.monotonic() - self.last > TIDY:
            self.trim(0)
            self.last = time.monotonic()


def work(engine: Engine | Several, orders: Orders, told: Events) -> None:
    """Do what orders say until they end, or until everything is finished where they say Drain."""
    draining, heap = False, Heap()
    while not orders.ended:
        for order in orders.take(wait=engine.idle and not draining):
            if isinstance(order, Submit):
                engine.submit(order)
            elif isinstance(order, Cancel):
                engine.cancel(order)
            else:
                engine.drain()
                draining = True
        events = engine.step()
        told.tell(events)
        heap.tidy()
        if any(isinstance(event, Drained) for event in events):
            return


def begin(words: argparse.Namespace) -> Engine | Several:
    """The engine with its model. ValueError or OSError in one sentence where it cannot be."""
    if words.threads:
        torch.set_num_threads(words.threads)
    try:
        torch.empty(0, device=words.device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by what it was built with
        raise ValueError(f"the device {words.device!r} cannot be used: {str(error).splitlines()[0]}") from error
    try:
        model, text = hub.load(words.model, dtype=words.dtype, device=words.device)
        beside = {name: hub.beside(model, words.model, folder) for name, folder in words.adapter}
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{words.model} does not fit into the memory of {words.device}") from error
    threads = torch.get_num_threads() if words.threads is None and words.device == "cpu" else None
    shared = {"start_id": text.start_id, "memory": words.memory, "text": text, "threads": threads}
    engine = partial(Engine, name=words.name or words.model, **shared)
    base = engine(model.eval())
    return Several(base, {name: engine(each.eval()) for name, each in beside.items()}) if beside else base


def pair(given: str) -> tuple[str, str]:
    """NAME=FOLDER."""
    name, _, folder = given.partition("=")
    return name, folder


def arguments() -> argparse.Namespace:
    """What the process is started with."""
    found = argparse.ArgumentParser(prog="python -m unveil.serve.worker", description=__doc__)
    found.add_argument("model", help="a folder, a hub id or an embedded model")
    found.add_argument("--name", help="what the model is called to users")
    found.add_argument("--device", default="cpu")
    found.add_argument("--dtype", help="default: float32 on a CPU, else the checkpoint's own")
    found.add_argument("--memory", type=int, help="bytes for keys and values of requests")
    found.add_argument("--adapter", type=pair, action="append", default=[], help="NAME=FOLDER; may be repeated")
    found.add_argument("--interval", type=float, default=0.0, help="seconds for which a step may wait")
    found.add_argument("--threads", type=int, help="of the processor; default: one or all, whichever is faster")
    return found.parse_args()


def main() -> int:
    """Load, say Ready, work."""
    words = arguments()
    told = Events(os.dup(1), words.interval)
    os.dup2(2, 1)  # whatever a library prints goes to stderr and breaks no line
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="unveil engine: %(message)s")
    for each in (signal.SIGINT, signal.SIGTERM):
        # Service managers signal every process; requests end when the server says so, which ends the input.
        signal.signal(each, signal.SIG_IGN)
    try:
        engine = begin(words)
    except (ValueError, OSError) as error:
        told.tell([Refusal("", " ".join(str(error).split()))])
        return 2
    try:
        told.tell([engine.ready()])
        work(engine, Orders(0), told)
    except BrokenPipeError:
        log.warning("the server is gone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
