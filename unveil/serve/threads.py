"""How many threads of the processor a round of passes is computed with: whatever was faster when it was tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ..context import Ask

TRIES = 2  # rounds in a row that make a try, of which the fastest counts: the first has sleeping threads to wake
SHARE = 0.02  # of the time that may go into trying again what was slower
SELDOM = 50  # rounds between two tries at least
FRESH = 0.25  # weight of the latest round among those before it,
WORST = 2.0  # which counts as so many times as long as they took at most: somebody else may have had the processor


@dataclass
class Size:
    """What is known of rounds of about one size."""

    pace: dict[int, float] = field(default_factory=dict)  # seconds a position, by threads
    left: int = SELDOM  # rounds until the other number is tried again
    tries: list[float] = field(default_factory=list)  # of the try that is going on, seconds a position


class Threads:
    """One thread or all that there are, by the size of rounds.

    Threads meet after every product, and wait for the last of them: how large a round has to be for that to pay depends
    on the machine and on what else it does, such as handing answers on. So both are tried, and the slower one again
    from time to time, so seldom that this takes `SHARE` of the time.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter):
        self.most, self.clock = most, clock
        self.sizes: dict[int, Size] = {}  # by the bits of the number of positions

    @contextmanager
    def suited(self, asks: Iterable[Ask]) -> Iterator[None]:
        """Compute these passes inside."""
        positions = sum(len(ask.tokens) * ask.context.over(ask.tokens.shape[1]).width for ask in asks)
        size = self.sizes.setdefault(positions.bit_length(), Size())
        threads = self.choice(size)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        began = self.clock()
        yield
        self.learn(size, threads, (self.clock() - began) / max(positions, 1))

    def choice(self, size: Size) -> int:
        """What is not known yet, what was faster, or now and then the other."""
        for threads in (1, self.most):
            if threads not in size.pace:
                return threads
        size.left -= 1
        return (max if size.left < 0 else min)(size.pace, key=size.pace.__getitem__)

    def learn(self, size: Size, threads: int, pace: float) -> None:
        """Keep how long a round took."""
        if size.left >= 0 and threads in size.pace:
            known = size.pace[threads]
            size.pace[threads] += FRESH * (min(pace, WORST * known) - known)
            return
        size.tries.append(pace)
        if len(size.tries) < TRIES:
            return
        size.pace[threads], size.tries = min(size.tries), []
        fastest, slowest = min(size.pace.values()), max(size.pace.values())
        size.left = max(SELDOM, int(TRIES * (slowest / fastest - 1) / SHARE)) if fastest > 0 else SELDOM
