"""One spelling for a choice, everywhere: `"threshold(tau=0.95)"` on the command line, in a file, over HTTP.

A folder is its own list of names: `decoders/threshold.py` holds the decoder called "threshold", the class `Threshold`.
"""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def build(kind: str, text: str) -> Any:
    """`build("decoders", "threshold(tau=0.8)")` to an object; ValueError names the valid choices."""
    try:
        call = ast.parse(text if "(" in text else text + "()", mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"expected name(option=value, ...), got {text!r}")
    found = find(kind, call.func.id)
    valid = options(found)
    given = {}
    for word in call.keywords:
        if word.arg not in valid:
            known = ", ".join(f"{name}={default!r}" for name, default in valid.items()) or "none"
            raise ValueError(f"{call.func.id} has no option {word.arg!r}; its options are: {known}")
        try:
            value = ast.literal_eval(word.value)
        except ValueError:
            raise ValueError(f"{call.func.id}({word.arg}=...) needs a number, a string or a list") from None
        given[word.arg] = build(kind, value) if word.arg == "inner" and isinstance(value, str) else value
    try:
        return found(**given)
    except TypeError as error:
        raise ValueError(f"cannot build {text!r}: {error}") from None


def options(found: type) -> dict[str, object]:
    """The options of a choice and their defaults."""
    return {p.name: p.default for p in inspect.signature(found).parameters.values()}


def find(kind: str, name: str) -> type:
    """The class called `name` in the folder `kind`."""
    if name not in names(kind):
        raise ValueError(f"no {kind[:-1]} called {name!r}; there are: {', '.join(names(kind))}")
    module = import_module(f"{__package__}.{kind}.{name}")
    return next(v for k, v in vars(module).items() if k.lower() == name.replace("_", "") and isinstance(v, type))


def names(kind: str) -> list[str]:
    """Every choice in the folder `kind`."""
    return [m.name for m in iter_modules(import_module(f"{__package__}.{kind}").__path__)]
