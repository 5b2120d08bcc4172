"""Which replica a prompt belongs to, so that prompts that begin alike find their beginning computed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from pydantic_core import from_json

TEXT, TOKENS = 256, 64  # characters, or tokens, that are compared


def beginning(body: bytes) -> bytes | None:
    """What the request's prompt begins with, the model included; None where it has none.

    Of a conversation that is everything up to its first message by a user, so that its later turns go where the first
    went. A request of several prompts goes by its first.
    """
    try:
        asked = from_json(body)
    except ValueError:
        return None  # it will be refused in better words
    if not isinstance(asked, dict):
        return None
    found = opening(asked.get("messages")) or first(asked.get("prompt"))
    if not found:
        return None
    return f"{asked.get('model') or ''}\n{found}".encode("utf-8", "surrogatepass")


def opening(messages: Any) -> str:
    """Everything up to the first message by a user."""
    if not isinstance(messages, list):
        return ""
    texts = []
    for each in messages:
        if not isinstance(each, dict):
            return ""
        texts.append(json.dumps([each.get("role"), each.get("content")]))
        if each.get("role") == "user":
            break
    return "".join(texts)[:TEXT]


def first(prompt: Any) -> str:
    """The beginning of a text, or of tokens; of several, of the first."""
    if isinstance(prompt, str):
        return prompt[:TEXT]
    if not isinstance(prompt, list) or not prompt:
        return ""
    return json.dumps(prompt[:TOKENS]) if isinstance(prompt[0], int) else first(prompt[0])


def preferred(key: bytes, replicas: Iterable[str]) -> str:
    """The replica that a beginning belongs to: the one of the highest hash together with it (rendezvous hashing).

    A replica that comes or goes moves the beginnings that are or were its own, and no others.
    """
    return max(replicas, key=lambda name: blake2b(key, key=name.encode()[:64], digest_size=8).digest())
