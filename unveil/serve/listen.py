"""One server from its address to its end: HTTP and the engine together, and signals that end both in order."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .journal import Journal, say
from .limits import Limits
from .link import Link
from .messages import Row, Submit

Result = TypeVar("Result")
HEADERS = 30.0  # seconds in which a connection has to say what it wants
HEADING = 1 << 16  # bytes in which it has to, address and headers
UNREAD = 60.0  # seconds in which a client has to take some of an answer that is ready
LAST = 2.0  # seconds to tell everybody that it is over
KEPT = 30  # seconds that a connection may stay open between two requests


class Patient(HttpToolsProtocol):
    """HTTP with an end to patience: for connections that never ask or never end asking, and for unread answers."""

    stalled: asyncio.TimerHandle | None = None
    heading: int | None = None  # bytes of a request whose headers are not complete; None: they are

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEADERS, self._ask)

    def _ask(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.heading is not None and not self.transport.is_closing():
            self.heading += len(data)
            if self.heading > HEADING:
                self.send_400_response("The address and the headers of a request take too many bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.heading = 0

    def on_headers_complete(self) -> None:
        self.heading = None
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled = self.loop.call_later(UNREAD, self.transport.abort)

    def resume_writing(self) -> None:
        self._move()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._move()
        super().connection_lost(exc)

    def _move(self) -> None:
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `serve`."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]):
        super().__init__(config)
        self.announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.announce()

    async def cut(self) -> None:
        """End every connection now."""
        for each in list(self.server_state.connections):
            each.transport.abort()
        if self.server_state.tasks:  # they see that nobody is there any more
            await asyncio.wait(list(self.server_state.tasks), timeout=1)
        self.force_exit = True


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, on the faster loop where the system has it."""
    factory = import_module("uvloop").new_event_loop if find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def bind(host: str, port: int) -> socket.socket:
    """A socket that has its address and does not listen yet. ValueError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host {host!r} is not an address of this machine: {error.strerror}") from error
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        reason = (error.strerror or "it cannot be had").lower()
        raise ValueError(f"cannot listen at {host} port {port}: {reason}; try another --port") from error
    return sock


def inward(sock: socket.socket) -> bool:
    """Is the address reached from this machine alone?"""
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def widen() -> None:
    """As many open files as the system lets this process have: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(
    command: list[str],
    limits: Limits,
    create: Callable[[Link], FastAPI],
    sock: socket.socket,
    announce: Callable[[Link], None],
    *,
    drain: float,
    journal: Journal,
) -> int:
    """Serve until a signal ends it; the exit status.

    `command` starts the engine, `create` makes what answers requests once its model is there, `announce` is called
    when the first can be taken. The first SIGTERM or SIGINT lets what runs finish for `drain` seconds, the second
    stops at once. ValueError where the engine refuses its model or the defaults for requests, Lost where it dies.
    """
    asked, again = signals()
    link = Link(command, queue=limits.queue, journal=journal)
    try:
        if not await unless(begin(link, limits), asked):
            return 0
        return await attend(link, http(create(link), lambda: announce(link)), sock, asked, again, drain, journal)
    finally:
        await link.stop()


def signals() -> tuple[asyncio.Event, asyncio.Event]:
    """What comes true with the first SIGTERM or SIGINT, and with the second. Also makes room for connections."""
    widen()
    loop, asked, again = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, lambda: (again if asked.is_set() else asked).set())
    return asked, again


def http(app: ASGIApp, announce: Callable[[], None]) -> Server:
    """A server of an application. Protocol and loop are named: uvicorn would take others where they are installed."""
    config = uvicorn.Config(
        app,
        http=Patient,
        lifespan="off",
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEPT,
    )
    return Server(config, announce)


class Answering(Protocol):
    """What answers behind HTTP: one engine, or several."""

    lost: asyncio.Future[str]  # the reason, once there is no hope left

    @property
    def waiting(self) -> int: ...

    @property
    def running(self) -> int: ...

    async def drain(self, seconds: float) -> bool: ...


async def attend(
    link: Answering,
    server: Server,
    sock: socket.socket,
    asked: asyncio.Event,
    again: asyncio.Event,
    drain: float,
    journal: Journal,
) -> int:
    """Run HTTP until somebody asks for the end or nothing can answer any more; the exit status."""
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    over = ending = asyncio.create_task(asked.wait())
    await asyncio.wait([serving, over, link.lost], return_when=asyncio.FIRST_COMPLETED)
    status, patience = 0, LAST
    if link.lost.done():
        say(link.lost.result())
        status = 1
    elif asked.is_set():
        journal.write("drain", waiting=link.waiting, running=link.running)
        say(f"finishing what was begun, for {drain:g} s at most; a second signal stops at once")
        ending = asyncio.create_task(link.drain(drain))
        patience += drain
    server.should_exit = True
    if not await unless(asyncio.wait([serving], timeout=patience), again):
        status = 1
    await server.cut()
    for each in (over, ending):
        each.cancel()
    await serving
    journal.write("end", status=status)
    return status


async def unless(doing, event: asyncio.Event) -> bool:
    """Do it to its end, or leave off when the event comes; was it done?"""
    task, other = asyncio.ensure_future(doing), asyncio.create_task(event.wait())
    await asyncio.wait([task, other], return_when=asyncio.FIRST_COMPLETED)
    other.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


async def begin(link: Link, limits: Limits) -> None:
    """Load the model and write one token as a request that names no options would, to see that these defaults go."""
    await link.start()
    tokens = [link.ready.start_id or 0, link.ready.mask_id]
    order = Submit(
        "first", [Row(tokens, 0)], limits.decoder, cache=limits.cache, block=limits.block, steps=limits.steps
    )
    async with link.submit(order) as stream:
        async for _ in stream:
            pass
