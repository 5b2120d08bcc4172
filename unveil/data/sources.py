"""Read documents from files, folders, the standard library's sources or a data set of the hub."""

from __future__ import annotations

import json
import lzma
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEPARATOR = "<|endoftext|>"
ROWS = (".jsonl", ".json", ".parquet")
KNOWN = (".txt", *ROWS)
ASIDE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Document:
    """One text with a name that says where it came from."""

    name: str
    text: str


def read(sources: str | Sequence[str], *, field: str | Sequence[str] = "text") -> Iterator[Document]:
    """The documents of each source in turn, always in the same order; documents of nothing but space are left out.

    A source is a file or a folder of .txt (one document, or several between "<|endoftext|>" marks), .jsonl, .json
    (a list of strings or objects) and .parquet, where `field` names the text, or several names of which the first
    that is there counts, each also as .xz; `stdlib`, the sources of Python's standard library; or OWNER/NAME[:CONFIG],
    a data set of the Hugging Face hub (its train split).
    ValueError, with the file's name, for what is missing, empty, not text, or without that field.
    """
    names = (field,) if isinstance(field, str) else tuple(field)
    for source in [sources] if isinstance(sources, str) else sources:
        found = False
        for document in _source(source, names):
            if document.text.strip():
                found = True
                yield document
        if not found:
            raise ValueError(f"{source} is empty: it holds no text")


def rows(sources: str | Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of .jsonl, .json and .parquet files or folders, each with a name. Errors as in `read`."""
    for source in [sources] if isinstance(sources, str) else sources:
        path = Path(source)
        if not path.exists():
            raise ValueError(f"no such file or folder: {source}")
        found = False
        for file, name in _files(path, ROWS):
            for where, row in _rows(file, name, None):
                if not isinstance(row, dict):
                    raise ValueError(f"{where} should be a JSON object, not a {type(row).__name__}")
                found = True
                yield where, row
        if not found:
            raise ValueError(f"{source} is empty: it holds no rows")


def _source(source: str, field: Sequence[str]) -> Iterator[Document]:
    path = Path(source)
    if source == "stdlib":
        yield from _stdlib()
    elif path.exists():
        for file, name in _files(path, KNOWN):
            yield from _file(file, name, field)
    elif HUB_ID.fullmatch(source) and not _kind(path):
        yield from _hub(source, field)
    else:
        several = ", one source and not several: name each by its own --data" if "," in source else ""
        raise ValueError(
            f"no such file or folder: {source}{several} (data is a file or a folder of {', '.join(KNOWN)}, "
            "each also as .xz, `stdlib`, or OWNER/NAME of a data set of the hub)"
        )


def _kind(path: Path) -> str:
    """The known suffix of a file, looking through .xz; "" when it has none."""
    suffix = (Path(path.stem) if path.suffix == ".xz" else path).suffix.lower()
    return suffix if suffix in KNOWN else ""


def _files(path: Path, kinds: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Files and their names. One file is taken whatever its suffix, a folder is searched for the known ones."""
    if path.is_file():
        yield path, path.name
        return
    inside = [file for file in path.rglob("*") if file.is_file() and _kind(file) in kinds]
    shown = [(file.relative_to(path).as_posix(), file) for file in inside]
    shown = [(name, file) for name, file in shown if not any(part.startswith(".") for part in name.split("/"))]
    if not shown:
        raise ValueError(f"{path} is a folder without any {', '.join(kinds)} file")
    for name, file in sorted(shown):
        yield file, f"{path.resolve().name}/{name}"


def _file(file: Path, name: str, field: Sequence[str]) -> Iterator[Document]:
    if _kind(file) in ROWS:
        for where, row in _rows(file, name, field):
            if isinstance(row, str):
                yield Document(where, row)
            elif isinstance(row, dict):
                yield Document(where, _field(row, field, where))
            else:
                raise ValueError(f"{where} should be a text or a JSON object, not a {type(row).__name__}")
        return
    text = _text(file)
    if SEPARATOR not in text:
        yield Document(name, text)
        return
    for i, part in enumerate(text.split(SEPARATOR)):
        yield Document(f"{name}#{i}", part.strip("\n"))


def _text(file: Path) -> str:
    """The whole file as text, ends of lines as they are."""
    data = file.read_bytes()
    if file.suffix == ".xz":
        try:
            data = lzma.decompress(data)
        except lzma.LZMAError as error:
            raise ValueError(f"{file} is not a valid .xz file: {error}") from error
    if not data.strip():
        raise ValueError(f"{file} is empty: it holds no text")
    if b"\0" in data:
        raise ValueError(f"{file} is binary, not text: byte {data.index(0)} is zero")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _rows(file: Path, name: str, field: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    """Rows of one file with their names; of a parquet file only the first column in `field` when it is given."""
    kind = _kind(file)
    if kind == ".parquet":
        for i, row in enumerate(_parquet(file, field)):
            yield f"{name}#{i}", row
        return
    text = _text(file)
    if kind == ".json":
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(found, list):
            raise ValueError(f"{file} should hold a JSON list of texts or objects, not a {type(found).__name__}")
        for i, row in enumerate(found):
            yield f"{name}#{i}", row
        return
    for i, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{name}#{i}", json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {i}, is not valid JSON: {error}") from error


def _field(row: dict[str, Any], field: Sequence[str], where: str) -> str:
    name = _known(field, sorted(row), where)
    if not isinstance(row[name], str):
        raise ValueError(f"{where}: field {name!r} should be a text, not a {type(row[name]).__name__}")
    return row[name]


def _known(field: Sequence[str], names: Sequence[str], where: object) -> str:
    """The first of the names in `field` that is there."""
    for name in field:
        if name in names:
            return name
    wanted = " or ".join(map(repr, field))
    raise ValueError(f"{where} has no field {wanted}: its fields are {', '.join(names)}; name one by --field")


def _parquet(file: Path, field: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"reading {file} needs pyarrow: pip install 'unveil[train]'") from error
    try:
        table = ParquetFile(file)
    except ArrowInvalid as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error
    columns = None if field is None else [_known(field, table.schema_arrow.names, file)]
    for some in table.iter_batches(columns=columns):
        yield from some.to_pylist()


def _stdlib() -> Iterator[Document]:
    """Python's standard library as installed here, without its tests: one document per source file."""
    root = Path(sysconfig.get_path("stdlib"))
    names = []
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if name not in ASIDE]  # installed packages would take long to walk
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in files if name.endswith(".py")]
    for name in sorted(names):
        data = (root / name).read_bytes()
        if data.strip():
            yield Document(name, data.decode("utf-8"))


def _hub(source: str, field: Sequence[str]) -> Iterator[Document]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f"{source} is no file or folder here, and loading it as a data set of the hub needs the datasets "
            "package: pip install 'unveil[train]'"
        ) from error
    name, _, config = source.partition(":")
    try:
        table: Any = load_dataset(name, config or None, split="train")
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{source} is no file or folder here, nor a data set that could be loaded from the hub: {reason}"
        ) from error
    column = _known(field, table.column_names, source)
    for i, row in enumerate(table.select_columns([column])):
        yield Document(f"{source}#{i}", _field(row, field, f"{source}#{i}"))
