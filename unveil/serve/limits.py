"""What one server allows and what it does where a request leaves something open."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Options of a server; all of them hold for every request.

    `decoder`, `cache`, `block` and `steps` are what a request gets that names none: spec strings and numbers as
    everywhere, None where the model is to decide. `queue` counts requests that wait for the engine; one more is
    refused with 429. `timeout` is seconds from a request's arrival to its last token. `max_tokens` and `max_prompt`
    count tokens of one row, `max_n` answers to one prompt, `max_rows` rows of one request (prompts times answers),
    `max_body` bytes of a request's body.
    """

    decoder: str = "confidence"
    cache: str | None = None
    block: int | None = None
    steps: int | None = None
    queue: int = 256
    timeout: float = 600.0
    max_tokens: int = 4096
    max_prompt: int | None = None  # None: whatever the model's context holds
    max_n: int = 16
    max_rows: int = 64
    max_body: int = 1 << 20
    keys: frozenset[str] = frozenset()  # empty: everybody is let in
    cors: tuple[str, ...] = ()  # origins whose pages may read answers
    page: bool = True
    template: str | None = None  # the text of a chat template that stands in for the model's own
