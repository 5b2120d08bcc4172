"""The folder of a report: refused before anything is measured, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def vacant(out: str, mark: str, overwrite: bool, unfinished: tuple[str, ...] = ()) -> Path:
    """The folder, if a report may be put there.

    mark        the file by which an earlier report of this kind is known: nothing else is ever overwritten
    unfinished  what the names of files begin with that a report which was stopped may have left there

    ValueError for a file, for a folder that holds something without `overwrite`, and for one that holds something else.
    """
    from ..folder import recover

    place = Path(out).expanduser().resolve()
    recover(place)
    if place.is_file():
        raise ValueError(f"{out} is a file: expected a folder for the results")
    if place.is_dir() and any(not path.name.startswith(unfinished or "\0") for path in place.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} exists and is not empty: choose another folder, or --overwrite")
        if not (place / mark).is_file():
            raise ValueError(f"{out} holds something without {mark}, which no report left: it will not be overwritten")
    return place


def leave(place: Path, files: Mapping[str, str | bytes | None]) -> list[str]:
    """All files in a folder beside, and then the folder in its place; their names. None: there is no such file."""
    import shutil

    from ..folder import exchange

    part = place.with_name(f".{place.name}.{os.getpid()}.partial")
    part.mkdir(parents=True)
    try:
        for name, content in files.items():
            if content is not None:
                (part / name).write_bytes(content.encode() if isinstance(content, str) else content)
        names = sorted(path.name for path in part.iterdir())
        exchange(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return names


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
