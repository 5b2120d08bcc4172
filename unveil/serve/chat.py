"""/v1/chat/completions: answer a conversation, written down by the model's chat template."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from . import plan, schema
from .answer import Answer, Delta, Token
from .pending import Pending
from .plan import Service
from .stream import answered


async def converse(service: Service, request: Request, asked: schema.Chat) -> Response:
    """Answer one request."""
    began = time.perf_counter()
    pending = Pending(service, await plan.chat(service, asked), began)
    return await answered(pending, request, asked, Pieces(pending, asked), "chat.completion")


class Pieces:
    """Pieces of replies, as OpenAI's clients read them."""

    def __init__(self, pending: Pending, asked: schema.Chat):
        self.pending, self.scored, self.spelling = pending, bool(asked.logprobs), pending.service.spelling
        self.begun: set[int] = set()  # rows of which something was told
        created = pending.created
        self.head = {"id": pending.id, "object": "chat.completion.chunk", "created": created, "model": pending.model}

    def __call__(self, index: int, answer: Answer, delta: Delta) -> Mapping[str, Any]:
        """What became certain of one reply; the first piece says who speaks."""
        role = {} if index in self.begun else {"role": "assistant"}
        self.begun.add(index)
        scores = self.scores(delta.tokens) if self.scored else None
        said = {**role, "content": delta.text}
        choice = {"index": index, "delta": said, "logprobs": scores, "finish_reason": delta.finish}
        if delta.finish:
            choice["seed"] = answer.place.seed
        return {**self.head, "choices": [choice]}

    def choices(self) -> list[Mapping[str, Any]]:
        """Every reply as a whole."""
        return [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": self.scores(answer.tokens) if self.scored else None,
                "finish_reason": answer.finish,
                "seed": answer.place.seed,
            }
            for index, answer in enumerate(self.pending.answers)
        ]

    def scores(self, tokens: Sequence[Token]) -> dict[str, list]:
        """Log-probabilities of the passes that committed the tokens."""
        return {"content": [self.score(token) for token in tokens]}

    def score(self, token: Token) -> dict[str, Any]:
        """One token with the likeliest in its place."""
        top = [] if token.write is None else token.write.top
        return {
            "token": token.text,
            "logprob": None if token.write is None else token.write.logp,
            "bytes": self.spelling.raw(token.token),
            "top_logprobs": [
                {"token": self.spelling.alone(each), "logprob": logp, "bytes": self.spelling.raw(each)}
                for each, logp in top
            ],
        }
