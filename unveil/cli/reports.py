"""What commands that leave a report share besides the place for it."""

from __future__ import annotations

from collections.abc import Mapping


def pretty(about: Mapping[str, object]) -> str:
    """A result as a file of JSON."""
    import json

    from .say import clean

    return json.dumps(clean(dict(about)), indent=1, ensure_ascii=False) + "\n"


def needs(command: str, extra: str, *modules: str) -> None:
    """ValueError with what to install where a module is missing."""
    from importlib.util import find_spec

    if not all(find_spec(each) for each in modules):
        raise ValueError(f"{command} needs what its extra brings: pip install 'unveil[{extra}]'")
