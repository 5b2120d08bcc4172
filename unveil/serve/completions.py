"""/v1/completions: continue texts, fill what stands before a suffix, or fill blanks anywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from ..codecs.spelling import Spelling
from . import plan, schema
from .answer import Answer, Delta, Token
from .pending import Pending
from .plan import Service
from .stream import answered


async def complete(service: Service, request: Request, asked: schema.Completion) -> Response:
    """Answer one request."""
    began = time.perf_counter()
    pending = Pending(service, await plan.completion(service, asked), began)
    return await answered(pending, request, asked, Chunks(pending, asked), "text_completion")


class Chunks:
    """Pieces of answers, as OpenAI's clients read them."""

    def __init__(self, pending: Pending, asked: schema.Completion):
        self.pending, self.scored, self.echo = pending, asked.logprobs is not None, bool(asked.echo)
        self.spelling = pending.service.spelling
        self.begun: set[int] = set()  # rows of which something was told
        created = pending.created
        self.head = {"id": pending.id, "object": "text_completion", "created": created, "model": pending.model}

    def __call__(self, index: int, answer: Answer, delta: Delta) -> Mapping[str, Any]:
        """What became certain of one answer."""
        first = index not in self.begun
        self.begun.add(index)
        lead = answer.place.lead if first else ""
        scores = self.scores(answer, delta.tokens, first) if self.scored else None
        choice = {"index": index, "text": lead + delta.text, "logprobs": scores, "finish_reason": delta.finish}
        if delta.finish:
            choice["seed"] = answer.place.seed
            if answer.place.blanks:
                choice["blanks"] = answer.parts
        return {**self.head, "choices": [choice]}

    def choices(self) -> list[Mapping[str, Any]]:
        """Every answer as a whole."""
        answers = enumerate(self.pending.answers)
        return [
            self(index, answer, Delta(answer.text, answer.tokens, answer.finish))["choices"][0]
            for index, answer in answers
        ]

    def scores(self, answer: Answer, tokens: Sequence[Token], first: bool) -> dict[str, list]:
        """Log-probabilities of the passes that committed the tokens; of a repeated prompt there are none."""
        found = repeated(self.spelling, answer) if first and self.echo else empty()
        shift = len(answer.place.lead)
        for token in tokens:
            logp = None if token.write is None else token.write.logp
            found["tokens"].append(token.text)
            found["token_logprobs"].append(logp)
            found["top_logprobs"].append(self.likeliest(token))
            found["text_offset"].append(token.begin + shift)
        return found

    def likeliest(self, token: Token) -> dict[str, float] | None:
        """The likeliest tokens by their texts, best first, and the one that was taken."""
        if token.write is None or token.write.logp is None:
            return None
        found: dict[str, float] = {}
        for each, logp in [*token.write.top, (token.token, token.write.logp)]:
            found.setdefault(self.spelling.alone(each), logp)
        return found


def empty() -> dict[str, list]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def repeated(spelling: Spelling, answer: Answer) -> dict[str, list]:
    """A repeated prompt's tokens, of which no pass said anything."""
    found, speller, offset = empty(), spelling.after(), 0
    for token in answer.place.tokens[: answer.place.start]:
        piece = speller.add(token)
        if token in spelling.special:
            continue
        found["tokens"].append(piece)
        found["token_logprobs"].append(None)
        found["top_logprobs"].append(None)
        found["text_offset"].append(offset)
        offset += len(piece)
    return found
