"""A thousand requests made from our OpenAPI document, right and wrong ones: no 5xx, nothing hangs, nothing untold.

UNVEIL_FUZZ_REQUESTS sets how many are made, where no clock stops them; by default so many as take half a minute
or so, most of them at the edges of the document; `make fuzz` makes five times as many.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import Counter
from typing import Any

import httpx
import schemathesis
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder
from talking import checkpoint, serving

REQUESTS = int(os.environ.get("UNVEIL_FUZZ_REQUESTS", "1000"))
SECONDS = math.inf if "UNVEIL_FUZZ_REQUESTS" in os.environ else 30.0
OPTIONS = ["--max-tokens", "3", "--max-n", "2", "--max-rows", "3", "--timeout", "20", "--threads", "1"]


def config(seed: int, phase: str) -> schemathesis.Config:
    """Of one run, which makes requests at the edges of the document or random ones."""
    phases = {name: {"enabled": name == phase} for name in ("coverage", "fuzzing", "examples", "stateful")}
    return schemathesis.Config.from_dict(
        {
            "seed": seed,
            "workers": 2,
            "request-timeout": 30,
            "suppress-health-check": ["all"],
            "generation": {"max-examples": 50, "mode": "all", "database": "none", "no-shrink": True},
            # A request may fit the document and yet ask for what does not go together, which is answered with 400.
            "checks": {"positive_data_acceptance": {"enabled": False}},
            "phases": phases,
        }
    )


SPECS = {
    "decoder": ["confidence", "threshold(tau=0.3)", "factor(f=2)", "random", "klass", "origin(kind='entropy')"],
    "cache": ["recompute", "causal"],
    "guide": ["eos", "eos(policy='stop')", "unconditional(scale=0.5)"],
}


def sensible(body: dict[str, Any], key: int) -> dict[str, Any]:
    """The same with specs that exist and without what does not go together, so that the engine has to answer it."""
    for name, specs in SPECS.items():
        if body.get(name) is not None:
            body[name] = specs[key % len(specs)]
    for name, most in {"block": 16, "steps": 8}.items():
        if body.get(name) is not None:
            body[name] = 1 + body[name] % most
    if body.get("stream_options") or body.get("stream_mode") == "denoise":
        body["stream"] = True
    if body.get("top_logprobs"):
        body["logprobs"] = True
    if body.get("max_completion_tokens"):
        body.pop("max_tokens", None)
    if body.get("blanks"):
        body["prompt"] = f"{str(body['prompt'])[:20]}[[2]] and [[1]]"
        for name in ("suffix", "stop", "logprobs", "echo"):
            body.pop(name, None)
    if body.get("suffix") is not None or body.get("blanks") or body.get("full"):
        for name in ("response_format", "full", "cache"):
            body.pop(name, None)
    return body


class Tally:
    """What was answered, and what was wrong with it."""

    def __init__(self) -> None:
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0

    def __len__(self) -> int:
        return sum(self.statuses.values())

    def run(self, url: str, seed: int, phase: str) -> None:
        """Make requests of one kind and look at every answer."""
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config(seed, phase))
        if phase == "fuzzing" and seed > 1:
            schema = schema.include(method="POST")

        @schema.hook
        def map_case(context, case):
            if isinstance(case.body, dict) and case.meta.generation.mode == schemathesis.GenerationMode.POSITIVE:
                key = int(hashlib.sha256(json.dumps(case.body, sort_keys=True).encode()).hexdigest()[:8], 16)
                case.body = sensible(case.body, key // 4) if key % 4 else case.body
            return case

        for event in from_schema(schema).execute():
            if isinstance(event, FatalError | NonFatalError):
                self.wrong.append(str(event))
            elif isinstance(event, ScenarioFinished):
                self.look(event.recorder)

    def look(self, made: ScenarioRecorder) -> None:
        for name, checks in made.checks.items():
            sent = made.interactions.get(name)
            failed = [check.failure_info.failure for check in checks if check.failure_info is not None]
            self.wrong += [f"{made.label}: {failure} {sent and sent.request.body!r}" for failure in failed]
        for each in made.interactions.values():
            assert each.response is not None, f"{made.label} was not answered: {each.request.body!r}"
            self.statuses[made.label, each.response.status_code] += 1
            self.slowest = max(self.slowest, each.response.elapsed)


def test_requests_made_from_the_document(tmp_path):
    tally, seed = Tally(), 0
    with serving(checkpoint(tmp_path / "fuzzed"), *OPTIONS) as server:
        began = time.monotonic()
        tally.run(server.url, 0, "coverage")
        while len(tally) < REQUESTS and time.monotonic() - began < SECONDS:
            seed += 1
            tally.run(server.url, seed, "fuzzing")
        print(f"{len(tally)} requests in {time.monotonic() - began:.0f} s, the slowest took {tally.slowest:.2f} s")
        print(*sorted(tally.statuses.items()), sep="\n")
        assert not tally.wrong, "\n".join(tally.wrong[:5])
        assert max(status for _, status in tally.statuses) < 500
        assert tally.slowest < 20
        assert len(tally) > 800
        for route in ("completions", "chat/completions"):
            assert tally.statuses[f"POST /v1/{route}", 200] >= 20
        found = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=30)
        assert found.status_code == 200, found.text
        assert server.metric("unveil_engine_restarts_total") == 0
        assert server.metric("unveil_running_requests") == 0
