"""What is said when a request cannot be answered: one shape for every error, as OpenAI's clients read it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as Declined

from . import schema
from .journal import Journal

KINDS = {401: "authentication_error", 429: "rate_limit_error"}  # of other 4xx invalid_request_error
LONGEST = 300  # characters of what a client sent that an error repeats


class Gone(Exception):
    """The client went away; nobody reads an answer."""


class Problem(HTTPException):
    """A request that cannot be answered, with one sentence for whoever sent it."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers or {}))
        self.message, self.param, self.code = message, param, code

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        return said(self.status_code, self.message, self.param, self.code)


def wrong(message: str, param: str | None = None, code: str | None = None) -> Problem:
    """The request is at fault."""
    return Problem(400, message, param, code)


def said(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer_errors(app: FastAPI, journal: Journal) -> None:
    """Give every error of an app its shape; nothing of ours is told beyond it."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return JSONResponse(error.content, error.status_code, error.headers)

    @app.exception_handler(Gone)
    async def gone(_: Request, error: Gone) -> Response:
        return Response(status_code=499)  # for the log; nobody reads it

    @app.exception_handler(Declined)
    async def declined(request: Request, error: Declined) -> JSONResponse:
        told = {
            404: f"there is no {request.url.path[:LONGEST]}",
            405: f"{request.url.path[:LONGEST]} does not take {request.method[:LONGEST]}",
        }
        message = told.get(error.status_code, "the request cannot be answered")
        return JSONResponse(said(error.status_code, message), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def misfit(request: Request, error: RequestValidationError) -> JSONResponse:
        chat = request.url.path.endswith("/chat/completions")
        message, param = first(error.errors(), schema.Chat if chat else schema.Completion)
        return JSONResponse(said(400, message, param), 400)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        name = failure(journal, error)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return JSONResponse(said(500, f"something went wrong here; the server's log knows it as {name}"), 500, headers)


def failure(journal: Journal, error: BaseException) -> str:
    """Note what went wrong and where; the name under which the log has it. What a client sent is not noted."""
    name = uuid4().hex[:12]
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{frame.name} {frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    journal.write("failure", id=name, error=type(error).__name__, where=where)
    return name


# What does not fit the schema


def first(found: Sequence[Mapping[str, Any]], model: type[schema.Strict]) -> tuple[str, str | None]:
    """One sentence on the first thing that does not fit, and the name of the field."""
    error = found[0]
    place = [part for part in error["loc"] if part != "body"]
    unknown = error["ctx"]["error"] if error["type"] == "value_error" else None
    if isinstance(unknown, schema.Unknown):
        where = f" in {place[0]}" if place else ""
        message = f"unknown field {unknown.field!r}{where}; there are: {', '.join(unknown.known)}"
        return message, str(place[0]) if place else unknown.field
    if error["type"] == "json_invalid" or not place:
        return "expected a JSON object as the request's body", None
    name = str(place[0])[:LONGEST]
    if error["type"] == "missing":
        return f"{'.'.join(map(str, place))} is missing", name
    about = model.model_fields[name].description if name in model.model_fields else None
    told = str(error["msg"])[:LONGEST]
    if about and len(place) > 1:
        return f"{name} does not fit; expected {about}", name
    steps = [name, *(str(part) for part in place[1:] if isinstance(part, int) or part in schema.Message.model_fields)]
    fault = told.removeprefix("Input ") if told.startswith("Input should") else f"does not fit: {told}"
    return f"{'.'.join(steps)} {fault}" + (f" ({about})" if about else ""), name
