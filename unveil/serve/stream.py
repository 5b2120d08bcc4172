"""Server-sent events: final text in order, as OpenAI's clients expect it, or every step's writes and take-backs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..codecs.spelling import Spelling
from . import schema
from .answer import Answer, Delta, Place
from .errors import Gone, Problem
from .messages import Step, Write
from .pending import Pending, finished, watched

SPELLED = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
MANY = 2_000  # tokens that are spelled at once; more of them in a thread


Chunks = AsyncIterator[Sequence[Mapping[str, Any]]]
"""What a stream holds, in order; chunks that became known together are together."""


class Telling(Protocol):
    """How answers are told: piece by piece as they become certain, and as a whole."""

    head: dict[str, Any]  # of every piece

    def __call__(self, index: int, answer: Answer, delta: Delta) -> Mapping[str, Any]: ...

    def choices(self) -> list[Mapping[str, Any]]: ...


async def answered(
    pending: Pending, request: Request, asked: schema.Completion | schema.Chat, telling: Telling, whole: str
) -> Response:
    """The response to one request, streamed or at its end; `whole` is what the object of a whole answer is called."""
    if not asked.stream:
        await finished(pending, request)
        head = {**telling.head, "object": whole}
        return JSONResponse({**head, "choices": telling.choices(), "usage": pending.usage})
    await pending.begin(request)
    if asked.stream_mode == "denoise":
        return EventStream(pending, denoised(pending))
    usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    return EventStream(pending, in_order(pending, telling, usage))


class EventStream(Response):
    """Sends what `chunks` gives, and ends the request when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, pending: Pending, chunks: Chunks):
        super().__init__(None, 200, {"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.pending, self.chunks = pending, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with watched(receive, self.pending.leave):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for data in told(self.chunks):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (Gone, OSError):
            return  # nobody reads what would follow
        finally:
            self.pending.close()


async def told(chunks: Chunks) -> AsyncIterator[bytes]:
    """Chunks as events, those that came together at once; an error is the last of them."""
    try:
        async for some in chunks:
            if some:
                yield b"".join(map(event, some))
    except Problem as problem:
        yield event(problem.content)
    yield b"data: [DONE]\n\n"


def event(chunk: Mapping[str, Any]) -> bytes:
    """One event, which is one line."""
    return b"data: " + SPELLED.encode(chunk).encode() + b"\n\n"


async def in_order(pending: Pending, telling: Telling, usage: bool) -> Chunks:
    """Final text, piece by piece; at the end what it took, if that was asked for."""
    more = {"usage": None} if usage else {}
    async for events in pending.events():
        certain: dict[int, Delta] = {}  # of each row, what several steps made certain
        for event, delta in events:
            if delta.text or delta.tokens or delta.finish:
                certain[event.row] = certain[event.row].and_then(delta) if event.row in certain else delta
        yield [{**telling(row, pending.answers[row], delta), **more} for row, delta in certain.items()]
    if usage:
        yield [{**telling.head, "choices": [], "usage": pending.usage}]


async def denoised(pending: Pending) -> Chunks:
    """The canvas, every step, and the finished text."""
    head = {"id": pending.id, "created": pending.created, "model": pending.model}
    places, spelling = pending.plan.places, pending.service.spelling
    yield [{"object": "unveil.canvas", **head, "choices": await canvases(pending)}]
    async for events in pending.events():
        steps = [changed(spelling, step) for step, _ in events if isinstance(step, Step)]
        yield [{"object": "unveil.step", "id": pending.id, "choices": [step]} for step in steps]
    choices = []
    for index, (place, answer) in enumerate(zip(places, pending.answers, strict=True)):
        parts = {"blanks": answer.parts} if place.blanks else {}
        text = place.lead + answer.text
        choices.append({"index": index, "text": text, **parts, "finish_reason": answer.finish, "seed": place.seed})
    yield [{"object": "unveil.done", **head, "choices": choices, "usage": pending.usage}]


async def canvases(pending: Pending) -> list[dict[str, Any]]:
    """Each row before its first step."""
    places, mask = pending.plan.places, pending.service.link.ready.mask_id
    firsts = {place.prompt: place for place in places}  # rows of one prompt look the same

    def spelled() -> dict[int, list[dict[str, Any]]]:
        return {number: laid_out(pending.service.spelling, place, mask) for number, place in firsts.items()}

    many = sum(len(place.tokens) for place in firsts.values()) > MANY
    found = await asyncio.to_thread(spelled) if many else spelled()
    return [
        {"index": index, "mask_id": mask, "seed": place.seed, "tokens": found[place.prompt]}
        for index, place in enumerate(places)
    ]


def laid_out(spelling: Spelling, place: Place, mask: int) -> list[dict[str, Any]]:
    """The positions of a row: given text, a piece for each token, and blanks."""
    found: list[dict[str, Any]] = []
    speller = spelling.after()
    for token in place.tokens:
        if token == mask:
            found.append({"text": "", "blank": True})
            speller = spelling.after(spelling.anchor)  # what follows a blank keeps its space
        else:
            found.append({"text": speller.add(token), "blank": False, "token": token})
    return found


def changed(spelling: Spelling, step: Step) -> dict[str, Any]:
    """What one step wrote and took back."""
    return {
        "index": step.row,
        "block": step.block,
        "step": step.step,
        "forwards": step.forwards,
        "final": step.final,
        "seconds": round(step.seconds, 4),
        "written": [put(spelling, write) for write in step.writes],
        "taken_back": step.taken_back,
    }


def put(spelling: Spelling, write: Write) -> dict[str, Any]:
    """A token as it was committed."""
    likeliest = [{"token": token, "text": spelling.alone(token), "logprob": logp} for token, logp in write.top]
    text = spelling.alone(write.token)
    return {"at": write.at, "token": write.token, "text": text, "logprob": write.logp, "top": likeliest}
