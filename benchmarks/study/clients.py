"""Clients of a running server: real sockets, many at once, each waiting for its answer before it asks again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

BUSY = 0.2  # seconds before a client that was told to come back does so


@dataclass(frozen=True)
class Answer:
    """What one request took, as its client saw it."""

    request: int
    began: float
    first: float  # seconds to the first final text
    seconds: float  # to the end
    tokens: int
    forwards: int
    text: str


@dataclass(frozen=True)
class Server:
    address: str
    process: int  # of the HTTP side; the engine is its child

    def resident(self) -> dict[str, int]:
        """Bytes that each of the two processes holds."""
        return {"http": held(self.process), "engine": sum(map(held, children(self.process)))}


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def held(process: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    """`unveil serve MODEL` on a free port, until the block ends."""
    command = [sys.executable, "-m", "unveil", "serve", model, "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith("{"):
                    break
            else:
                raise SystemExit(f"{' '.join(command)} did not start")
            yield Server(json.loads(line)["url"], server.pid)
        finally:
            server.terminate()


async def ask(client: httpx.AsyncClient, body: dict, number: int) -> Answer:
    """One streamed completion."""
    began = time.perf_counter()
    while True:
        first, parts, usage = None, [], {}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code == 429:
                await asyncio.sleep(BUSY)
                continue
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise RuntimeError(chunk["error"]["message"])
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    if choice["text"]:
                        first = first or time.perf_counter() - began
                        parts.append(choice["text"])
        seconds = time.perf_counter() - began
        text = "".join(parts)
        return Answer(number, began, first or seconds, seconds, usage["completion_tokens"], usage["forwards"], text)


async def crowd(address: str, bodies: Sequence[dict], clients: int, each: Callable[[Answer], None]) -> None:
    """`clients` at once, all requests between them, in order."""
    waiting = iter(enumerate(bodies))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits) as http:

        async def one() -> None:
            for number, body in waiting:
                each(await ask(http, {**body, "stream": True, "stream_options": {"include_usage": True}}, number))

        await asyncio.gather(*(one() for _ in range(clients)))


def load(server: Server, bodies: Sequence[dict], clients: int, each: Callable[[Answer], None] = lambda _: None):
    """All answers in the order of their requests, and the seconds that all of them took together."""
    found: list[Answer] = []

    def keep(answer: Answer) -> None:
        found.append(answer)
        each(answer)

    began = time.perf_counter()
    asyncio.run(crowd(server.address, bodies, clients, keep))
    seconds = time.perf_counter() - began
    return sorted(found, key=lambda answer: answer.request), seconds
