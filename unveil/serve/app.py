"""The HTTP interface: OpenAI's routes over one engine, its metrics and health, and the page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from .. import __version__
from ..codecs.text import Text
from . import schema
from .about import document, entry, state
from .body import careful
from .chat import converse
from .completions import complete
from .errors import answer_errors
from .guard import Keyed, Sealed
from .journal import Journal
from .limits import Limits
from .link import Link
from .plan import Service, unknown

PAGE = Path(__file__).parent / "page"
EVENTS = {"text/event-stream": {"schema": {"description": "with stream: data lines of JSON, then [DONE]"}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": schema.Failure, "description": "The request is wrong"},
    401: {"model": schema.Failure, "description": "No key of this server"},
    403: {"model": schema.Failure, "description": "Not called by its address or localhost"},
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    404: {"model": schema.Failure, "description": "No such model"},
    408: {"model": schema.Failure, "description": "The body came too slowly"},
    413: {"model": schema.Failure, "description": "The body is too large"},
    415: {"model": schema.Failure, "description": "The body is not JSON"},
    429: {"model": schema.Failure, "description": "The queue is full; Retry-After tells when to come again"},
    500: {"model": schema.Failure, "description": "Something went wrong here"},
    503: {"model": schema.Failure, "description": "There is no engine to answer"},
    504: {"model": schema.Failure, "description": "It took too long"},
}


def create(link: Link, text: Text, limits: Limits, journal: Journal | None = None) -> FastAPI:
    """The application that answers requests by the engine behind `link`, which has started.

    `text` is the model's tokenizer, with the chat template that conversations are put into.
    """
    journal = journal or Journal()
    service, created = Service(link, text, limits, journal), int(time.time())
    app = FastAPI(title="unveil", version=__version__, description=__doc__ or "", docs_url=None, redoc_url=None)
    routes = APIRouter(route_class=careful(limits.max_body))

    @routes.post(
        "/v1/completions",
        response_model=schema.CompletionAnswer,
        responses={200: {"content": EVENTS}, **ANSWERS},
    )
    async def completions(request: Request, asked: schema.Completion) -> Response:
        """Continue prompts, or fill the blank between prompt and suffix, or blanks anywhere."""
        return await complete(service, request, asked)

    @routes.post(
        "/v1/chat/completions", response_model=schema.ChatAnswer, responses={200: {"content": EVENTS}, **ANSWERS}
    )
    async def chats(request: Request, asked: schema.Chat) -> Response:
        """Answer a conversation."""
        return await converse(service, request, asked)

    @routes.get("/v1/models", response_model=schema.Models, responses=ERRORS)
    async def models() -> Response:
        """The served model and its adapters, and what they can do."""
        return JSONResponse({"object": "list", "data": [entry(service, created, name) for name in service.names]})

    @routes.get("/v1/models/{model:path}", response_model=schema.ModelEntry, responses={**ERRORS, 404: ANSWERS[404]})
    async def one(model: str) -> Response:
        """A model by its name."""
        if model not in service.names:
            raise unknown(service, model, "model")
        return JSONResponse(entry(service, created, model))

    @routes.get("/health", response_model=schema.Health, responses={503: {"model": schema.Health}})
    async def health() -> Response:
        """Can requests be taken?"""
        word = state(link)
        return JSONResponse({"status": word}, 200 if word == "ok" else 503)

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **ERRORS})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.include_router(routes)
    if limits.page:
        show(app)
    answer_errors(app, journal)
    app.add_middleware(Keyed, keys=limits.keys)
    if limits.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=limits.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(Sealed, metrics=service.metrics, journal=journal)
    described: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not described:
            described.update(document(app, service))
        return described

    app.openapi = openapi
    return app


def show(app: FastAPI) -> None:
    """Put the page at /."""

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE, check_dir=False))
