"""What the server counts, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .journal import Journal
from .link import Link

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RATES = (0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)
KNOWN = ("/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/completions", "/v1/chat/completions")


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, link: Link, journal: Journal):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(Reading(link, journal))
        own = self.registry
        self.requests = Counter("unveil_requests", "Requests answered", ["route", "status"], registry=own)
        self.prompt_tokens = Counter("unveil_prompt_tokens", "Tokens of prompts that were answered", registry=own)
        self.tokens = Counter("unveil_completion_tokens", "Tokens of answers", registry=own)
        self.forwards = Counter("unveil_forwards", "Forward passes, counted for each answer", registry=own)
        self.rate = Histogram("unveil_tokens_per_forward", "Of a request", buckets=RATES, registry=own)
        self.first = Histogram(
            "unveil_first_commit_seconds", "From a request's arrival to its first token", buckets=SECONDS, registry=own
        )
        self.total = Histogram(
            "unveil_request_seconds", "From a request's arrival to its last token", buckets=SECONDS, registry=own
        )
        self.left = Counter("unveil_abandoned_requests", "Requests whose client went away", registry=own)


class Reading(Collector):
    """What the engine and the log tell of themselves, read when somebody asks."""

    def __init__(self, link: Link, journal: Journal):
        self.link, self.journal = link, journal

    def collect(self) -> Iterator[Metric]:
        link, load = self.link, self.link.load
        gauges = {
            "unveil_up": ("Can the engine take requests", link.alive),
            "unveil_queue_requests": ("Requests that wait to be admitted", link.waiting),
            "unveil_running_requests": ("Requests being answered", link.running),
            "unveil_running_rows": ("Rows being written", load.running),
            "unveil_memory_bytes": ("Keys and values of running requests", load.memory),
            "unveil_memory_kept_bytes": ("Keys and values kept for reuse", load.kept),
            "unveil_memory_limit_bytes": ("Most that keys and values of requests may take", link.ready.memory),
        }
        counters = {
            "unveil_engine_rounds": ("Rounds of passes since the engine was started", load.rounds),
            "unveil_engine_passes": ("Model calls, likewise", load.passes),
            "unveil_engine_tokens": ("Tokens committed, likewise", load.tokens),
            "unveil_reused_positions": ("Prompt positions that were not computed again, likewise", load.reused),
            "unveil_engine_restarts": ("Times the engine was started again", link.restarts),
            "unveil_log_lines_dropped": ("Lines that the log could not take", self.journal.dropped),
        }
        for name, (about, value) in gauges.items():
            yield GaugeMetricFamily(name, about, value)
        for name, (about, value) in counters.items():
            yield CounterMetricFamily(name, about, value)


def labelled(path: str) -> str:
    """The route that a path belongs to; a label with few values, whatever is asked for."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    if path.startswith("/page/"):
        return "/page"
    return path if path in KNOWN else "other"
