"""Bodies of requests, read with a limit and understood strictly before anything else sees them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from .errors import Problem, wrong

DEPTH = 32  # brackets within brackets
PATIENCE = 60.0  # seconds for a body to arrive
THROWN = 1 << 26  # bytes read and thrown away, so that whoever sends too much can read what is wrong
LONG = 1 << 16  # bytes that are not understood while others wait
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
ALIKE = bytes.maketrans(b"{}", b"[]")
OTHERS = bytes(set(range(256)) - set(b"[]{}"))


class Careful(Request):
    """A request whose body is UTF-8, JSON, no larger than `most` bytes and no deeper than `DEPTH`."""

    def __init__(self, request: Request, most: int):
        super().__init__(request.scope, request.receive)
        self.most = most

    async def body(self) -> bytes:
        """Problem where it is too large, too slow or not called JSON."""
        if not hasattr(self, "_body"):
            kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                # Pages of other origins may send text and forms without asking, but not this.
                raise Problem(415, f"expected the content type application/json, got {kind[:64] or 'none'!r}")
            try:
                async with asyncio.timeout(PATIENCE):
                    self._body = await self.bounded()
            except TimeoutError:
                raise Problem(408, "the body did not arrive in time", headers={"Connection": "close"}) from None
            except ClientDisconnect:
                raise wrong("the body is not whole") from None
        return self._body

    async def bounded(self) -> bytes:
        """The whole body."""
        parts, size = [], 0
        async for chunk in self.stream():
            size += len(chunk)
            if size <= self.most:
                parts.append(chunk)
            if size > THROWN:
                break
        if size > self.most:
            message = f"the body has more than {self.most} bytes, the most that is taken here"
            raise Problem(413, message, headers={"Connection": "close"} if size > THROWN else {})
        return b"".join(parts)

    async def json(self) -> Any:
        """What the body says; Problem where it is not JSON."""
        body = await self.body()
        if len(body) > LONG:
            return await asyncio.to_thread(understood, body)
        return understood(body)


def understood(body: bytes) -> Any:
    """The value of a JSON text. NaN, Infinity, half characters and deep nesting are refused."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise wrong(f"the body is not valid JSON: {str(error)[:200]}", code="invalid_json") from None
    if depth_exceeds(body, DEPTH):
        raise wrong(f"the body is nested deeper than {DEPTH} levels", code="invalid_json")
    return value


def depth_exceeds(body: bytes, most: int) -> bool:
    """Are there more than `most` brackets within brackets in a JSON text? Takes no more stack for deep ones."""
    if body.count(b"[") + body.count(b"{") <= most:
        return False
    brackets = STRING.sub(b"", body).translate(ALIKE, OTHERS)  # the text is valid, so every string ends
    for _ in range(most):
        brackets = brackets.replace(b"[]", b"")  # the innermost level
    return bool(brackets)


def careful(most: int) -> type[APIRoute]:
    """Routes whose requests are `Careful`."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner = super().get_route_handler()

            async def answer(request: Request) -> Response:
                return await inner(Careful(request, most))

            return answer

    return Route
