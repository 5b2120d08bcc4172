"""One replica: an actor of Ray Serve with the application, and with an engine in a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import serve
from starlette.types import Message

from .. import app, listen
from ..journal import Journal
from ..link import Link, Lost
from ..setup import Setup
from .router import Wish

LEFT = 5.0  # seconds for a request to end whose client went away


@dataclass(frozen=True)
class Asked:
    """A whole request, as ASGI has it."""

    scope: dict[str, Any]  # plain values alone
    body: bytes


@dataclass(frozen=True)
class Began:
    """The beginning of an answer; pieces of its body follow."""

    replica: str
    status: int
    headers: list[tuple[bytes, bytes]]


class Replica:
    async def __init__(self, setup: Setup):
        """Load the model. ValueError in one sentence where that fails."""
        root = str(Path(__file__).parents[3])  # the engine's process is to find modules where this one did
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.name = serve.get_replica_context().replica_id.unique_id
        journal = Journal(None if setup.log is None else Path(setup.log))
        self.link = Link(setup.command(), queue=setup.limits.queue, journal=journal)
        try:
            await listen.begin(self.link, setup.limits)
        except Lost as error:
            raise ValueError(str(error)) from error
        self.app = app.create(self.link, setup.text(), setup.limits, journal)

    async def answer(self, asked: Asked, wish: Wish) -> AsyncIterator[Began | bytes]:
        """The answer to a request, piece by piece. Where it is read no further, the request ends."""
        told: asyncio.Queue[Message] = asyncio.Queue()
        left, read = asyncio.Event(), False

        async def receive() -> Message:
            nonlocal read
            if not read:
                read = True
                return {"type": "http.request", "body": asked.body, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        answering = asyncio.create_task(answered(self.app, asked.scope, receive, told))
        try:
            while (message := await told.get())["type"] != "end":
                if message["type"] == "http.response.start":
                    yield Began(self.name, message["status"], list(message["headers"]))
                elif message.get("body"):
                    yield message["body"]
        finally:
            left.set()
            await asyncio.wait([answering], timeout=LEFT)
            answering.cancel()

    async def check_health(self) -> None:
        """Ray Serve starts another replica where this raises: the engine died too often to be started again here."""
        if self.link.lost.done():
            raise RuntimeError(self.link.lost.result())


async def answered(application: Any, scope: dict[str, Any], receive: Any, told: asyncio.Queue[Message]) -> None:
    """Let the application answer; what it says ends with a message of type end, whatever happens."""
    try:
        await application(scope, receive, told.put)
    finally:
        told.put_nowait({"type": "end"})
