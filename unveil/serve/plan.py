"""From what a client asks for to what the engine is told: rows of tokens, their seeds and options."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from ..choices import Choices, with_options
from ..codecs import blanks
from ..codecs.spelling import Spelling
from ..codecs.text import Text
from . import schema
from .answer import Place
from .errors import Problem, wrong
from .grammar import ANY_OBJECT, check
from .journal import Journal
from .limits import Limits
from .link import Link
from .messages import Row, Submit
from .metrics import Metrics

LENGTH = 64  # tokens that are written where a request does not say
QUICK = 4_096  # characters that are tokenised at once; more of them in a thread
UNBOUNDED = 1 << 20  # positions, where a model names no limit
SHRINKS = 4  # times, at most, that a normaliser makes a text shorter


class Service:
    """What every route needs: the engine, the tokenizer and what this server allows."""

    def __init__(self, link: Link, text: Text, limits: Limits, journal: Journal):
        self.link, self.text, self.limits, self.journal = link, text, limits, journal
        self.metrics = Metrics(link, journal)
        self.spelling = Spelling(text)
        self.choices = {kind: Choices(kind) for kind in ("decoders", "caches", "guides")}
        self.longest = max(map(len, text.tokenizer.get_vocab(with_added_tokens=True)), default=1)

    async def encoded(self, text: str, param: str, begins: bool = True) -> list[int]:
        """Tokens of plain text, which may stand behind a blank; special tokens spelled in it are text."""
        return await self.worked(lambda: self.text.encode(text, begins=begins), len(text), param)

    async def worked(self, work: Callable[[], Any], characters: int, param: str) -> Any:
        """Do it, without letting others wait for what takes long. A text that cannot fit is not even looked at."""
        if characters > self.room * self.longest * SHRINKS:
            raise too_long(f"more than {self.room} tokens, the most that fits", param)
        return await asyncio.to_thread(work) if characters > QUICK else work()

    @property
    def names(self) -> list[str]:
        """What requests may ask for: the model and its adapters."""
        return [self.link.ready.name, *self.link.ready.adapters]

    @property
    def length(self) -> int:
        """Tokens to write where a request does not say."""
        return min(LENGTH, self.limits.max_tokens)

    @property
    def context(self) -> int:
        """Positions that a row may have."""
        return self.link.ready.context or UNBOUNDED

    @property
    def room(self) -> int:
        """Tokens that a prompt may have."""
        return self.context if self.limits.max_prompt is None else min(self.context, self.limits.max_prompt)


@dataclass(frozen=True)
class Plan:
    """A request as the engine is asked and as its answer is told."""

    order: Submit
    places: list[Place]  # one a row
    prompts: list[int]  # tokens of each prompt
    stops: list[str]


async def completion(service: Service, asked: schema.Completion) -> Plan:
    """A plan for /v1/completions. Problem where it cannot be."""
    infill = bool(asked.blanks) or asked.suffix is not None
    suited(service, asked, infill)
    given = prompts(asked)
    rows(service, asked, len(given))
    if not asked.blanks:
        written(service, asked)
    shapes = []
    for each in given:
        if asked.blanks:
            shapes.append(await template(service, asked, each))
        else:
            shapes.append(await continued(service, asked, each))
    return await planned(service, asked, shapes, f"cmpl-{uuid4().hex}", asked.logprobs, infill)


async def chat(service: Service, asked: schema.Chat) -> Plan:
    """A plan for /v1/chat/completions. Problem where it cannot be."""
    if service.text.template is None:
        message = "this model has no chat template: use /v1/completions, or serve it with --chat-template FILE"
        raise wrong(message, "messages")
    if asked.max_tokens and asked.max_completion_tokens and asked.max_tokens != asked.max_completion_tokens:
        raise wrong("max_tokens and max_completion_tokens say different things: give one of them", "max_tokens")
    if asked.top_logprobs and not asked.logprobs:
        raise wrong("top_logprobs needs logprobs: true", "top_logprobs")
    suited(service, asked, infill=False)
    rows(service, asked, 1)
    length = written(service, asked)
    turns = [turn(each) for each in asked.messages]
    characters = sum(len(each["content"]) for each in turns)
    try:
        ids = await service.worked(lambda: service.text.chat(turns), characters, "messages")
    except ValueError as error:
        raise wrong(str(error), "messages") from None
    shape = shaped(service, ids, [], length, "messages", lead="", ends=True, context=len(ids))
    tops = (asked.top_logprobs or 0) if asked.logprobs else None
    return await planned(service, asked, [shape], f"chatcmpl-{uuid4().hex}", tops, infill=False)


def turn(message: schema.Message) -> dict[str, str]:
    """A message as chat templates read it."""
    parts = message.content if isinstance(message.content, list) else None
    content = message.content if parts is None else "".join(part.text for part in parts)
    found = {"role": "system" if message.role == "developer" else message.role, "content": str(content)}
    return found if message.name is None else {**found, "name": message.name}


# Rows


def prompts(asked: schema.Completion) -> list[str | list[int]]:
    """Each prompt by itself."""
    given = asked.prompt
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [[token for token in given if isinstance(token, int)]]
    return [each for each in given if not isinstance(each, int)]


async def begun(service: Service, prompt: str | list[int]) -> list[int]:
    """The tokens of a prompt; a text begins as the model was trained to begin one, tokens are taken as they are."""
    ready = service.link.ready
    if isinstance(prompt, str):
        start = [] if ready.start_id is None else [ready.start_id]
        return start + await service.encoded(prompt, "prompt")
    if len(prompt) > service.room:
        raise too_long(f"{len(prompt)} tokens", "prompt", service.room)
    if strange := next((token for token in prompt if not 0 <= token < ready.vocab), None):
        raise wrong(f"the prompt holds the token {strange}; this model's tokens are 0 to {ready.vocab - 1}", "prompt")
    if ready.mask_id in prompt:
        raise wrong(
            f"the prompt holds the mask token {ready.mask_id}, which stands for a blank; to have several filled, "
            "write [[n]] in a text and set blanks",
            "prompt",
        )
    return list(prompt)


async def continued(service: Service, asked: schema.Completion, prompt: str | list[int]) -> Place:
    """A prompt, what is written, and what follows it."""
    ids = await begun(service, prompt)
    after = [] if asked.suffix is None else await service.encoded(asked.suffix, "suffix", begins=False)
    lead = "" if not asked.echo else prompt if isinstance(prompt, str) else service.text.decode(ids)
    length = asked.max_tokens or service.length
    return shaped(service, ids, after, length, "prompt", lead=lead, ends=asked.suffix is None, context=0)


def shaped(
    service: Service,
    before: list[int],
    after: list[int],
    length: int,
    param: str,
    *,
    lead: str,
    ends: bool,
    context: int,
) -> Place:
    """One blank of `length` tokens between what stands before and after it."""
    ready, given = service.link.ready, len(before) + len(after)
    if given > service.room:
        raise too_long(f"{given} tokens", param, service.room)
    if given + length > service.context:
        message = f"{given} tokens are given and {length} are to be written: more than the model's {service.context}"
        raise wrong(message, param, "context_length_exceeded")
    if not before and ready.attention == "leader":
        raise wrong("the prompt is empty, and this model has no token to begin a text with", param)
    tokens = [*before, *[ready.mask_id] * length, *after]
    at = len(before)
    return Place(tokens, given, at, at + length, context, ready.eos_id if ends else None, lead)


async def template(service: Service, asked: schema.Completion, prompt: str | list[int]) -> Place:
    """A text with blanks anywhere, all of it told."""
    if not isinstance(prompt, str):
        raise wrong("blanks are written in a text, and the prompt holds tokens", "prompt")
    # What is told step by step is told of positions, so that likeliest tokens have their place there.
    for name in ("suffix", "stop", *(["logprobs"] if asked.stream_mode != "denoise" else [])):
        if getattr(asked, name) not in (None, []):
            raise wrong(f"{name} does not go with blanks", name)
    if asked.echo:
        raise wrong("echo does not go with blanks: the whole text is told in any case", "echo")
    ready, default = service.link.ready, asked.max_tokens or service.length

    def read(encode: blanks.Encode) -> blanks.Template:
        try:
            return blanks.parse(prompt, encode, ready.start_id, default)
        except ValueError as error:
            raise wrong(str(error), "prompt") from None

    lengths = [each.start for each in read(lambda piece, begins: []).lengths if len(each) == 1]
    found = await service.worked(lambda: read(service.text.encode), len(prompt), "prompt")
    if len(lengths) < len(found.lengths):
        raise wrong("a blank has a range of lengths; expected [[n]], a fixed number of tokens", "prompt")
    bounded(service, sum(lengths))
    given = sum(map(len, found.pieces))
    if given > service.room:
        raise too_long(f"{given} tokens", "prompt", service.room)
    if given + sum(lengths) > service.context:
        message = f"{given} tokens and blanks of {sum(lengths)} are more than the model's context of {service.context}"
        raise wrong(message, "prompt", "context_length_exceeded")
    _, tokens = next(found.rows(ready.mask_id))
    if tokens[0] == ready.mask_id and ready.attention == "leader":
        raise wrong("the text begins with a blank, and this model has no token to begin one with", "prompt")
    at, places = 0, []
    for piece, length in zip(found.pieces, lengths, strict=False):
        at += len(piece)
        places.append((at, at + length))
        at += length
    return Place(tokens, given, 0, len(tokens), 0, blanks=tuple(places))


def too_long(what: str, param: str, room: int | None = None) -> Problem:
    """A prompt that does not fit."""
    most = "" if room is None else f"; the most that is taken here is {room}"
    return wrong(f"the prompt has {what}{most}", param, "context_length_exceeded")


# What is allowed, and what goes together


def unknown(service: Service, model: str, param: str | None = None) -> Problem:
    """A model that is not served."""
    there = ", ".join(map(repr, service.names))
    return Problem(404, f"there is no model {model[:100]!r} here; there is {there}", param, "model_not_found")


def suited(service: Service, asked: schema.Asked, infill: bool) -> None:
    """Refuse what this model cannot do."""
    ready = service.link.ready
    if asked.model is not None and asked.model not in service.names:
        raise unknown(service, asked.model, "model")
    if asked.full and ready.attention == "block":
        raise wrong("full is for leader models, and this one looks in blocks", "full")
    if infill and ready.attention == "block":
        raise wrong("this model looks in blocks and cannot see what follows a blank; expected a prompt alone", "suffix")
    if infill and ready.attention == "leader" and asked.full is False:
        raise wrong("to fill blanks this model has to look both ways: leave full out, or true", "full")
    if asked.block is not None and asked.block > service.context:
        raise wrong(f"block is {asked.block}; this model's context has {service.context} positions", "block")
    if asked.stream_options is not None and not asked.stream:
        raise wrong("stream_options needs stream: true", "stream_options")
    if asked.stream_mode == "denoise" and not asked.stream:
        raise wrong("stream_mode needs stream: true", "stream_mode")


def rows(service: Service, asked: schema.Asked, count: int) -> None:
    """Refuse more answers than one request may have."""
    n, limits = asked.n or 1, service.limits
    if n > limits.max_n:
        raise wrong(f"n is {n}; the most here is {limits.max_n}", "n")
    if n * count > limits.max_rows:
        raise wrong(f"{count} prompts with n={n} make {n * count} answers; the most here is {limits.max_rows}", "n")


def written(service: Service, asked: schema.Asked) -> int:
    """How many tokens to write in each row."""
    also = asked.max_completion_tokens if isinstance(asked, schema.Chat) else None
    length = asked.max_tokens or also or service.length
    bounded(service, length)
    return length


def bounded(service: Service, length: int) -> None:
    """Refuse longer answers than are allowed."""
    most = service.limits.max_tokens
    if length > most:
        raise wrong(f"{length} tokens are to be written; the most here is {most}", "max_tokens")


# The order


async def planned(
    service: Service, asked: schema.Asked, shapes: list[Place], name: str, tops: int | None, infill: bool
) -> Plan:
    """Rows and options, as the engine is told."""
    n, limits = asked.n or 1, service.limits
    if asked.stream_mode == "denoise":  # tells how likely each token was in any case
        tops = tops or 0
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    places = [
        replace(each, seed=seed + number * n + index, prompt=number)
        for number, each in enumerate(shapes)
        for index in range(n)
    ]
    full = service.link.ready.attention == "leader" and (infill if asked.full is None else asked.full)
    # What a server decodes with by default suits its model as it was trained; looking both ways is another matter.
    usual = (None, None) if full else (limits.cache, limits.block)
    order = Submit(
        id=name,
        rows=[Row(place.tokens, place.seed) for place in places],
        decoder=decoder(service, asked),
        cache=safe(service, "caches", asked.cache) or usual[0],
        block=asked.block or usual[1],
        steps=asked.steps or limits.steps,
        guide=safe(service, "guides", asked.guide),
        adapter=asked.model if asked.model in service.link.ready.adapters else None,
        full=full,
        top=tops,
        ends=places[0].ends is not None,
        schema=await followed(service, asked, infill),
    )
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Plan(order, places, [each.given for each in shapes], stops)


def decoder(service: Service, asked: schema.Asked) -> str:
    """The decoder with the request's temperature and top_p."""
    usual = service.limits.decoder
    same = asked.decoder in (None, usual, service.choices["decoders"].shown(usual))
    chosen = usual if same else safe(service, "decoders", asked.decoder) or usual
    return with_options(chosen, temperature=asked.temperature, top_p=asked.top_p)


def safe(service: Service, kind: str, given: str | None) -> str | None:
    """A spec that holds no surprises."""
    try:
        return None if given is None else service.choices[kind].safe(given)
    except ValueError as error:
        raise wrong(str(error)[:600], kind.removesuffix("s")) from None


async def followed(service: Service, asked: schema.Asked, infill: bool) -> dict[str, Any] | None:
    """The JSON schema that answers have to follow."""
    form = asked.response_format
    if form is None or isinstance(form, schema.Plain):
        return None
    if infill or asked.full:
        raise wrong(
            "a JSON answer is written from left to right: it does not go with suffix, blanks or full", "response_format"
        )
    wanted = ANY_OBJECT if isinstance(form, schema.AnyObject) else form.json_schema.json_schema
    try:
        json.dumps(wanted, allow_nan=False)
        await asyncio.to_thread(check, wanted, service.text)
    except ValueError as error:
        raise wrong(" ".join(str(error).split())[:600], "response_format") from None
    return wanted
