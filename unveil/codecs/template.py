"""Chat templates as checkpoints carry them, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what an assistant wrote; here it is simply its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _json(value: Any, indent: int | None = None) -> str:
    """Plain JSON: jinja2's own filter escapes HTML, which no checkpoint was trained on."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def render(template: str, messages: Sequence[Mapping[str, Any]], names: Mapping[str, Any]) -> str:
    """The conversation as one string. `names` are further variables: special tokens, add_generation_prompt.

    ValueError when the template is broken or refuses these messages, with its reason.
    """
    options = ["jinja2.ext.loopcontrols", Generation]
    room = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=options)
    room.filters["tojson"] = _json
    room.globals["raise_exception"] = _refuse
    room.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return room.from_string(template).render(messages=messages, **names)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from error
