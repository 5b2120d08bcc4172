"""What stands around every route: security headers, keys, and a count of what was answered."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import said
from .journal import Journal
from .metrics import Metrics, labelled

PAGE = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
DATA = "default-src 'none'; frame-ancestors 'none'"
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
OPEN = ("/", "/health", "/openapi.json")  # to everybody, and the files of the page


def paged(path: str) -> bool:
    """Does the path belong to the page?"""
    return path == "/" or path.startswith("/page/")


class Sealed:
    """Puts security headers on every answer, and counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, journal: Journal):
        self.app, self.metrics, self.journal = app, metrics, journal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, path, status = time.perf_counter(), scope["path"], 500

        async def sealed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY)
                headers["Content-Security-Policy"] = PAGE if paged(path) else DATA
                headers["Cache-Control"] = "no-cache" if paged(path) else "no-store"
            await send(message)

        try:
            await self.app(scope, receive, sealed)
        finally:
            route = labelled(path)
            self.metrics.requests.labels(route, str(status)).inc()
            if route.startswith("/v1/"):
                seconds = round(time.perf_counter() - began, 4)
                self.journal.write("request", method=scope["method"], route=route, status=status, seconds=seconds)


class Keyed:
    """Lets in who has a key; without keys, everybody who knows where the server is.

    Pages of strangers could otherwise have their own name lead to this machine (DNS rebinding) and so be of one origin
    with a server on loopback. Where such a server has no keys, it has to be called by its address or localhost.
    """

    def __init__(self, app: ASGIApp, keys: Collection[str]):
        self.app = app
        self.digests = [digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if not self.digests and not local(scope, headers):
            message = "this server is to be called localhost; a proxy before it has to say so in Host, or keys be set"
            await JSONResponse(said(403, message, code="wrong_host"), 403)(scope, receive, send)
            return
        open_ = scope["type"] != "http" or not self.digests or scope["path"] in OPEN or paged(scope["path"])
        if open_ or self.admits(headers.get("authorization", "")):
            await self.app(scope, receive, send)
            return
        message = "expected a key of this server: Authorization: Bearer KEY"
        content = said(401, message, code="invalid_api_key")
        await JSONResponse(content, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def admits(self, header: str) -> bool:
        """Is it one of the keys? All are compared, in a time that says nothing of them or of their lengths."""
        scheme, _, given = header.partition(" ")
        found = digest(given.strip().encode("latin-1", "replace"))
        same = [hmac.compare_digest(found, each) for each in self.digests]
        return any(same) and scheme.lower() == "bearer"


def local(scope: Scope, headers: Headers) -> bool:
    """Is the server reached by a name that nobody else could give it, or from elsewhere anyway?"""
    reached = (scope.get("server") or ("", 0))[0]
    if not numeric(reached) or not ipaddress.ip_address(reached).is_loopback:
        return True
    try:
        name = urlsplit(f"//{headers.get('host', 'localhost')}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or numeric(name)


def numeric(host: str) -> bool:
    """Is it an address rather than a name?"""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def digest(key: bytes) -> bytes:
    """A key at a fixed length."""
    return hashlib.sha256(key).digest()
