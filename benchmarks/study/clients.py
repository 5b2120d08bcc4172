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
from urllib.parse import urlsplit
from urllib.request import urlopen

from unveil.serve.listen import run

BUSY = 0.2  # seconds before a client that was told to come back does so
END = b"\r\n0\r\n\r\n"  # of a body in chunks


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
class Heard:
    """What came back, not yet looked at: clients share the machine with the server."""

    request: int
    began: float
    first: float
    seconds: float
    content: bytes

    def told(self) -> Answer:
        """What the finished stream says."""
        lines = [line[6:] for line in self.content.split(b"\n") if line.startswith(b"data: {")]
        chunks = [json.loads(line) for line in lines]
        for chunk in chunks:
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
        text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        usage, times = chunks[-1]["usage"], (self.began, self.first, self.seconds)
        return Answer(self.request, *times, usage["completion_tokens"], usage["forwards"], text)


@dataclass(frozen=True)
class Server:
    address: str
    process: int  # of the HTTP side; the engine is its child

    def spent(self) -> dict[str, float]:
        """Seconds of processor time that both processes and this one have taken so far."""
        engine = sum(map(used, children(self.process)))
        return {"engine": engine, "http": used(self.process), "clients": time.process_time()}

    def rounds(self) -> float:
        """Rounds of passes that the engine has made. To be asked when it is idle, which it says at once."""
        time.sleep(0.1)
        with urlopen(f"{self.address}/metrics") as said:
            lines = said.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("unveil_engine_rounds_total "))

    def resident(self) -> dict[str, int]:
        """Bytes that each of the two processes holds."""
        return {"http": held(self.process), "engine": sum(map(held, children(self.process)))}


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def used(process: int) -> float:
    """Seconds of processor time of a process, all its threads together."""
    return sum(int(one.read_text().split()[0]) for one in Path(f"/proc/{process}/task").glob("*/schedstat")) / 1e9


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


@dataclass
class Client:
    """One connection that asks again and again. While an answer comes, its bytes are kept and looked at no further."""

    host: str
    port: int
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def ask(self, body: dict, number: int) -> Heard:
        """One streamed completion."""
        content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
        began = time.perf_counter()
        while True:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
            assert self.reader is not None
            self.writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            status = int((await self.reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
            if status == 429:
                self.writer.close()
                self.writer = None
                await asyncio.sleep(BUSY)
                continue
            if status != 200:
                raise RuntimeError(f"{status}: {(await self.reader.read(1000)).decode(errors='replace')}")
            answer, first = bytearray(), None
            while not answer.endswith(END):
                piece = await self.reader.read(1 << 16)
                first = first or time.perf_counter() - began
                if not piece:
                    raise RuntimeError("the server left off in the middle of an answer")
                answer += piece
            return Heard(number, began, first or 0.0, time.perf_counter() - began, bytes(answer))


async def crowd(address: str, bodies: Sequence[dict], clients: int, each: Callable[[Heard], None]) -> None:
    """`clients` at once, all requests between them, in order."""
    waiting = iter(enumerate(bodies))
    parts = urlsplit(address)
    assert parts.hostname is not None
    assert parts.port is not None

    async def one(client: Client) -> None:
        for number, body in waiting:
            each(await client.ask(body, number))
        if client.writer is not None:
            client.writer.close()

    await asyncio.gather(*(one(Client(parts.hostname, parts.port)) for _ in range(clients)))


def load(server: Server, bodies: Sequence[dict], clients: int, each: Callable[[Heard], None] = lambda _: None):
    """All answers in the order of their requests, the seconds that all of them took together, and what was spent."""
    found: list[Heard] = []

    def keep(heard: Heard) -> None:
        found.append(heard)
        each(heard)

    before, began = server.spent(), time.perf_counter()
    run(crowd(server.address, bodies, clients, keep))
    seconds = time.perf_counter() - began
    spent = {name: after - before[name] for name, after in server.spent().items()}
    return [heard.told() for heard in sorted(found, key=lambda heard: heard.request)], seconds, spent
