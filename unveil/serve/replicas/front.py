"""What stands before the replicas: it hands each request to one of them, and to another where that one dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentResponseGenerator
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..body import Careful
from ..errors import Gone, Problem, failure, said
from ..guard import DATA, SECURITY
from ..journal import Journal
from ..limits import Limits
from ..pending import BEGUN, watched
from ..stream import event
from .affinity import beginning
from .pool import Pool
from .replica import Asked, Began
from .router import Wish

PAUSE = 0.25  # seconds before a replica is asked again that had no engine
LATE = 5.0  # seconds beyond the limit of a request, which its replica watches
OWN = {**SECURITY, "Content-Security-Policy": DATA, "Cache-Control": "no-store"}
PLAIN = (
    "type",
    "method",
    "scheme",
    "http_version",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "client",
    "server",
)
STOPPED = "the replica that answered has stopped"


class Front:
    """An ASGI application that passes requests on. Of a request it understands only how its prompt begins.

    A replica that dies before anything of its answer was sent costs time and no error: the request goes to another one.
    It does so once where an engine may have begun it, since it may be what ended the engine.
    """

    def __init__(self, pool: Pool, limits: Limits, journal: Journal):
        self.pool, self.limits, self.journal = pool, limits, journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.pool.counted():
            try:
                response = await self.response(scope, receive)
            except Problem as problem:
                response = JSONResponse(problem.content, problem.status_code, {**OWN, **(problem.headers or {})})
            except Gone:
                return
            except (RayError, RayServeException) as error:
                message = f"something went wrong here; the server's log knows it as {failure(self.journal, error)}"
                response = JSONResponse(said(500, message), 500, OWN)
            await response(scope, receive, send)

    async def response(self, scope: Scope, receive: Receive) -> Response:
        """What answers; an answer of a replica has begun. Problem where none will."""
        if scope["path"] == "/health":
            there = self.pool.there > 0
            return JSONResponse({"status": "ok" if there else "starting"}, 200 if there else 503, OWN)
        if scope["path"] == "/metrics":
            return await self.metrics(scope)
        request = Careful(Request(scope, receive), self.limits.max_body)
        body = await request.body() if scope["method"] == "POST" else b""
        passing = Passing(self, Asked(plain(scope), body))
        async with watched(receive, passing.leave):
            await passing.begin()
        return passing

    async def metrics(self, scope: Scope) -> Response:
        """The metrics of all replicas, each under its name."""
        found: dict[str, str] = {}
        for name in await self.pool.names():
            passing = Passing(self, Asked(plain(scope), b""), name)
            await passing.begin()
            text = b"".join([piece async for piece in passing.pieces()])
            if passing.began.status != 200:
                return Response(text, passing.began.status, OWN, "application/json")
            found[passing.began.replica] = text.decode()
        return Response(self.pool.metrics(found), 200, OWN, "text/plain; version=0.0.4; charset=utf-8")


def plain(scope: Scope) -> dict[str, Any]:
    """What an application has to know of a connection, in values that can be sent."""
    return {name: scope[name] for name in PLAIN if name in scope} | {"headers": [tuple(h) for h in scope["headers"]]}


class Passing(Response):
    """One request on its way to a replica, and the answer on its way back. `begin` it before it is sent."""

    began: Began
    first: bytes | None  # piece of the answer
    stream: DeploymentResponseGenerator | None = None

    def __init__(self, front: Front, asked: Asked, only: str | None = None):
        self.front, self.asked, self.only = front, asked, only
        self.key = beginning(asked.body)
        self.avoid: frozenset[str] = frozenset()  # replicas without an engine
        self.begun = 0  # times that an engine may have begun it
        self.deadline = time.monotonic() + front.limits.timeout + LATE
        self.gone = False
        self.background = None

    async def begin(self) -> None:
        """Ask replicas until one answers. Problem where none does, Gone where the client goes away before."""
        try:
            while not await self.asks():
                self.front.pool.repeated += 1
        except BackPressureError:
            message = f"the queue is full: {self.front.limits.queue} requests wait; try again in 5 s"
            raise Problem(429, message, code="queue_full", headers={"Retry-After": "5"}) from None
        except (Problem, asyncio.CancelledError):
            self.leave()
            raise

    async def asks(self) -> bool:
        """Ask one replica; False where another is to be asked. An answer begins with its first piece."""
        wish = Wish(self.key, self.avoid, self.only)
        self.stream = self.front.pool.ask(self.asked, wish)
        try:
            began = await self.next()
            assert isinstance(began, Began)
            self.began, self.first = began, await self.piece()
        except RayActorError:
            self.begun += 1
            if self.begun > 1:
                raise Problem(503, STOPPED, code="engine_unavailable", headers={"Retry-After": "2"}) from None
            return False
        if self.began.status != 503 or b'"engine_unavailable"' not in (self.first or b""):
            return True
        self.begun += any(name.decode().lower() == BEGUN.lower() for name, _ in self.began.headers)
        if self.began.replica in self.avoid:
            await asyncio.sleep(PAUSE)  # there is no other
        self.avoid |= {self.began.replica}
        return self.begun > 1

    async def next(self) -> Began | bytes | None:
        """The next piece; None at the end."""
        assert self.stream is not None
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                return await anext(self.stream, None)
        except TimeoutError:
            seconds = self.front.limits.timeout
            raise Problem(504, f"the request took longer than {seconds:g} s", code="timeout") from None
        except (RequestCancelledError, TaskCancelledError):
            raise Gone from None

    async def piece(self) -> bytes | None:
        """The next piece of the body."""
        found = await self.next()
        assert not isinstance(found, Began)
        return found

    async def pieces(self) -> AsyncIterator[bytes]:
        """The pieces of the answer. One that breaks off ends with an error, where it is a stream of events."""
        try:
            while self.first is not None:
                yield self.first
                self.first = await self.piece()
        except (RayActorError, Problem) as error:
            if any(b"text/event-stream" in value for _, value in self.began.headers):
                yield event(
                    error.content if isinstance(error, Problem) else said(503, STOPPED, code="engine_unavailable")
                )
                yield b"data: [DONE]\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with watched(receive, self.leave):
                await send({"type": "http.response.start", "status": self.began.status, "headers": self.began.headers})
                async for piece in self.pieces():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (Gone, OSError):
            return  # nobody reads what would follow
        finally:
            self.leave()

    def leave(self) -> None:
        """Nobody reads any further."""
        if self.stream is not None:
            self.stream.cancel()
