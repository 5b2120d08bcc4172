"""The replicas as whoever stands before them sees them: how many there are, what they do, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.util import list_named_actors

from .replica import Asked
from .router import Wish

LOOK = 1.0  # seconds between two looks at what Ray Serve says
MISSES = 10  # looks in vain, one after the other, before it is given up


class Pool:
    """`name` is what Ray Serve calls the application that `handle` leads to."""

    def __init__(self, handle: DeploymentHandle, name: str):
        self.handle, self.name = handle.options(stream=True), name
        self.there = 1  # replicas that take requests
        self.running = self.repeated = 0
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.watching = asyncio.create_task(self.watch())

    @property
    def waiting(self) -> int:
        """Requests that wait are among those that run."""
        return 0

    def ask(self, asked: Asked, wish: Wish) -> DeploymentResponseGenerator:
        """Have a request answered by one of them."""
        stream = self.handle.answer.remote(asked, wish)
        assert isinstance(stream, DeploymentResponseGenerator)
        return stream

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """One more request runs."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    async def watch(self) -> None:
        """See how many replicas there are, for as long as the application is there."""
        misses = 0
        while not self.lost.done():
            try:
                found = (await asyncio.to_thread(serve.status)).applications.get(self.name)
                misses = 0 if found is not None else misses + 1
                if found is not None:
                    states = [pair for each in found.deployments.values() for pair in each.replica_states.items()]
                    self.there = sum(count for state, count in states if state in ("RUNNING", "UPDATING"))
            except (RayError, RayServeException, ConnectionError):
                misses += 1
            if misses == MISSES:
                self.lost.set_result(f"Ray Serve has no application {self.name} any more, or cannot be reached")
            await asyncio.sleep(LOOK)

    async def names(self) -> list[str]:
        """The replicas that there are."""
        actors: list[Any] = await asyncio.to_thread(list_named_actors, all_namespaces=True)
        names: list[str] = [each["name"] for each in actors]
        return sorted(name.rpartition("#")[2] for name in names if name.startswith(f"SERVE_REPLICA::{self.name}#"))

    def metrics(self, found: Mapping[str, str]) -> bytes:
        """Ours, and what replicas say by their names, as Prometheus reads it."""
        registry = CollectorRegistry()
        registry.register(Together(self, found))
        return generate_latest(registry)

    async def drain(self, seconds: float) -> bool:
        """Wait until everything taken is finished; False when that takes longer."""
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return not self.running


class Together(Collector):
    """The metrics of all."""

    def __init__(self, pool: Pool, found: Mapping[str, str]):
        self.pool, self.found = pool, found

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("unveil_replicas", "Replicas that take requests", self.pool.there)
        yield GaugeMetricFamily("unveil_front_requests", "Requests taken and not finished", self.pool.running)
        about = "Times that a request went to another replica, since one had died"
        yield CounterMetricFamily("unveil_repeated_requests", about, self.pool.repeated)
        families: dict[str, Metric] = {}
        for replica, text in self.found.items():
            for each in text_string_to_metric_families(text):
                family = families.setdefault(each.name, Metric(each.name, each.documentation, each.type))
                for sample in each.samples:
                    family.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from families.values()
