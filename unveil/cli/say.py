"""What commands print: plain text for people, one JSON object as the last line for machines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line, and nothing coloured.")]


def result(found: dict, as_json: bool, lines: list[str] | None = None) -> None:
    """The lines for people, or the object for machines."""
    if as_json:
        print(json.dumps(clean(found), ensure_ascii=False))
    else:
        print("\n".join(lines or []))
    sys.stdout.flush()


def progress(every: int) -> Callable[[int, int, str], None]:
    """Told how much is done, of how much, and of what; says so on standard error each time `every` percent are full."""
    said = -1

    def tell(done: int, total: int, name: str) -> None:
        nonlocal said
        share = 100 // every * done // total
        if share > said:
            said = share
            print(f"{every * share:3d} %  {name}", file=sys.stderr)

    return tell


def clean(value):
    """JSON has neither infinities nor paths."""
    if isinstance(value, dict):
        return {str(name): clean(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def table(rows: list[tuple[str, object]]) -> list[str]:
    """Two columns, the first as wide as it must be."""
    wide = max(len(name) for name, _ in rows)
    return [f"{name:<{wide}}  {value}" for name, value in rows]
