"""What a server tells of its model, of its own state, and of its interface."""

from __future__ import annotations

import ast
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .link import Link
from .plan import Service


def entry(service: Service, created: int, name: str) -> dict[str, Any]:
    """The served model or one of its adapters, as /v1/models lists it."""
    ready, limits, kinds = service.link.ready, service.limits, service.choices
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "unveil",
        **({"parent": ready.name} if name in ready.adapters else {}),
        "unveil": {
            "attention": ready.attention,
            "block": ready.block,
            "context_length": ready.context,
            "vocab": ready.vocab,
            "parameters": ready.parameters,
            "device": ready.device,
            "dtype": ready.dtype,
            **{kind: offered(service, kind) for kind in kinds},
            "defaults": {
                "decoder": kinds["decoders"].shown(limits.decoder),
                "cache": limits.cache,
                "block": limits.block,
                "steps": limits.steps,
            },
            "chat": service.text.template is not None,
            "autoregressive": ready.attention == "leader",
        },
    }


def offered(service: Service, kind: str) -> list[dict[str, Any]]:
    """The choices of a kind with their options; those that name files are not for clients."""
    known = service.choices[kind]
    return [
        {
            "name": name,
            "about": about,
            "options": {
                option: ast.unparse(default)
                for option, (_, default) in known.options[name].items()
                if ast.unparse(default) != "''"
            },
        }
        for name, about in known.about.items()
    ]


def state(link: Link) -> str:
    """How the server is, in one word."""
    if link.lost.done():
        return "down"
    if link.closing:
        return "draining"
    return "ok" if link.alive else "starting"


def document(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI document, with the model, the choices and the limits of this server in it."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    known, limits = found["components"]["schemas"], service.limits
    rules: dict[str, dict[str, Any]] = {
        "model": {"enum": service.names},
        "max_tokens": {"maximum": limits.max_tokens},
        "max_completion_tokens": {"maximum": limits.max_tokens},
        "n": {"maximum": limits.max_n},
    }
    for name in ("Completion", "Chat"):
        fields = known[name]["properties"]
        for field, rule in rules.items():
            if field in fields:
                fields[field]["anyOf"][0].update(rule)  # the other is null
        for kind, choices in service.choices.items():
            fields[kind.removesuffix("s")]["anyOf"].insert(0, {"type": "string", "enum": list(choices.about)})
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # what does not fit is answered with 400
    for name in ("HTTPValidationError", "ValidationError"):
        known.pop(name, None)
    if limits.keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in found["paths"].items():
            if path != "/health":
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
    return found
