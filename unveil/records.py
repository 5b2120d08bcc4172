"""Rows of published task files (JSON lines, JSON lists, CSV, text) or of a set on the hub, asked for their fields."""

from __future__ import annotations

import csv
import json
import lzma
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Hub:
    """Where a set lies on the hub, as `datasets.load_dataset` takes it."""

    id: str
    name: str | None = None  # of its configuration
    split: str = "test"


@dataclass(frozen=True)
class Row:
    """One row and where it stands. Every question it cannot answer is a ValueError that says what is missing where."""

    values: Mapping[str, Any]
    place: str  # "piqa.jsonl, line 3"

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def field(self, name: str, *kinds: type) -> Any:
        """A field of one of these types."""
        if name not in self.values:
            there = ", ".join(map(str, self.values)) or "none at all"
            raise ValueError(f"{self.place}: the field {name!r} is missing; its fields are: {there}")
        found = self.values[name]
        if isinstance(found, kinds) and not (isinstance(found, bool) and bool not in kinds):
            return found
        wanted = " or ".join({str: "text", int: "a whole number", list: "a list", dict: "an object"}[k] for k in kinds)
        raise ValueError(f"{self.place}: expected {wanted} in the field {name!r}, got {type(found).__name__}")

    def text(self, name: str) -> str:
        return self.field(name, str)

    def texts(self, name: str) -> list[str]:
        """At least one text."""
        found = self.field(name, list)
        if not found or not all(isinstance(each, str) for each in found):
            raise ValueError(f"{self.place}: expected a list of texts in the field {name!r}")
        return found

    def index(self, name: str, count: int, first: int = 0) -> int:
        """Which of `count`, from 0; the file counts from `first`, perhaps in digits as text."""
        found = self.field(name, int, str)
        if isinstance(found, str) and not re.fullmatch("[0-9]{1,4}", found):
            raise ValueError(f"{self.place}: expected a number in the field {name!r}, got {found!r}")
        if not first <= int(found) < first + count:
            raise ValueError(
                f"{self.place}: {name!r} is {found}; expected one of {count} options, counted from {first}"
            )
        return int(found) - first


def located(data: str, names: Sequence[str]) -> Path:
    """The file that `data` is, or the first in the folder `data` that has one of `names` (patterns)."""
    path = Path(data).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"no such file or folder: {data}")
    for name in names:
        if found := sorted(path.glob(name)):
            return found[0]
    raise ValueError(f"{data} has no file of this task; expected one named {' or '.join(names)}")


def opened(path: Path) -> str:
    """The text of a file, also of one packed by xz. ValueError when it is not UTF-8."""
    try:
        data = path.read_bytes()
        return (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8-sig")
    except lzma.LZMAError as error:
        raise ValueError(f"{path} is no .xz file: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read(path: Path) -> list[Row]:
    """The rows of a .jsonl, .json (a list) or .csv file; of another, its texts as rows with the field `text`.

    Texts are parted by "<|endoftext|>", else by empty lines. ValueError for what is no such file, and for one that
    holds nothing.
    """
    text, kind = opened(path), path.with_suffix("").suffix if path.suffix == ".xz" else path.suffix
    rows = list(parsed(text, kind, path))
    if not rows:
        raise ValueError(f"{path} is empty: it holds no rows")
    return rows


def parsed(text: str, kind: str, path: Path) -> Iterator[Row]:
    match kind:
        case ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at characters inside of strings
                if line.strip():
                    yield row(decoded(line, f"{path.name}, line {number}"), f"{path.name}, line {number}")
        case ".json":
            found = decoded(text, str(path))
            if not isinstance(found, list):
                raise ValueError(f"{path}: expected a JSON list of rows, got {type(found).__name__}")
            for number, each in enumerate(found, 1):
                yield row({"text": each} if isinstance(each, str) else each, f"{path.name}, row {number}")
        case ".csv":
            for number, each in enumerate(csv.DictReader(text.splitlines(keepends=True)), 2):
                named = {name: value for name, value in each.items() if name is not None and value is not None}
                yield Row(named, f"{path.name}, line {number}")
        case _:
            parts = text.split(SEPARATOR) if SEPARATOR in text else re.split(r"\n\s*\n", text)
            for number, part in enumerate((part.strip() for part in parts if part.strip()), 1):
                yield Row({"text": part}, f"{path.name}, text {number}")


def decoded(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error.msg} at column {error.colno}") from error


def row(found: Any, place: str) -> Row:
    if not isinstance(found, dict):
        raise ValueError(f"{place}: expected one JSON object, got {type(found).__name__}")
    return Row(found, place)


def fetched(hub: Hub) -> list[Row]:
    """The rows of a set on the hub, or of its copy in the cache of `datasets`.

    ValueError without the library, and when the set cannot be had.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ModuleNotFoundError as error:
        raise ValueError(
            "sets on the hub are read by datasets, which is not installed: pip install 'unveil[train]', or give files "
            "with --tasks-dir"
        ) from error
    try:
        found: Iterable[Any] = load_dataset(hub.id, hub.name, split=hub.split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the set {hub.id} could not be had from the hub ({type(error).__name__}): give its file with --tasks-dir"
        ) from error
    rows = [Row(dict(each), f"{hub.id}, row {number}") for number, each in enumerate(found, 1)]
    if not rows:
        raise ValueError(f"the set {hub.id} is empty: it holds no rows")
    return rows
