"""A run as a file: a line of JSON about it, a line for each step, and a line at its end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from ..canvas import Canvas
from .frames import Frame, Said

FORMAT, VERSION = "unveil trace", 1
DIGITS = 6  # of a probability
KINDS = {"block": int, "step": int, "forwards": int, "seconds": (int, float), "written": list, "taken_back": list}
ITEM = {1: "positions", 3: "position, token and probability", 5: "position, token, probability, entropy and gap"}


@dataclass(frozen=True)
class Header:
    """What ran, and on what."""

    model: str  # as its user called it
    tokenizer: str  # a folder, a hub id or the name of an embedded model
    decoder: str
    cache: str
    guide: str | None
    block: int | None
    steps: int | None
    mask_id: int
    seeds: list[int]  # one a row
    lengths: list[int]  # positions of each row
    rows: list[list[int]]  # token ids as they stood before the first step; blanks hold the mask id

    @classmethod
    def of(cls, canvas: Canvas, **choices) -> Header:
        """The header of a canvas that has not been begun."""
        rows = [row.tolist() for row in canvas.rows()]
        lengths = canvas.lengths.tolist()
        return cls(mask_id=canvas.mask_id, seeds=canvas.seeds.tolist(), lengths=lengths, rows=rows, **choices)


@dataclass(frozen=True)
class Trace:
    """A recorded run."""

    header: Header
    steps: Sequence[Mapping[str, Any]]  # the lines between the first and the last, checked

    def frames(self) -> Iterator[Frame]:
        """The run as it was seen: the canvas before the first step and after each one."""
        mask = self.header.mask_id
        tokens = [list(row) for row in self.header.rows]
        blanks = [{at for at, token in enumerate(row) if token == mask} for row in tokens]
        nothing: list[list[int]] = [[] for _ in tokens]
        yield Frame(0, [list(row) for row in tokens], [sorted(row) for row in blanks], [{} for _ in tokens], nothing)
        for step in self.steps:
            written: list[dict[int, float]] = []
            for row, left, new, gone in zip(tokens, blanks, step["written"], step["taken_back"], strict=True):
                for at, token, _ in new:
                    row[at] = token
                    left.discard(at)
                for at in gone:
                    row[at] = mask
                    left.add(at)
                written.append({at: known(p) for at, _, p in new})
            yield Frame(
                step["forwards"],
                [list(row) for row in tokens],
                [sorted(row) for row in blanks],
                written,
                step["taken_back"],
                step["block"],
                step["step"],
                step["seconds"],
                [{at: Said(best, *map(known, values)) for at, best, *values in row} for row in step.get("said", [])],
            )


def record(frames: Iterable[Frame], path: str | Path, header: Header) -> Iterator[Frame]:
    """The same frames, each also written to a file: under another name while the run goes on, as `path` at its end."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    steps, seconds = 0, 0.0
    try:
        with draft.open("w", encoding="utf-8") as file:
            put(file, {"format": FORMAT, "version": VERSION, **asdict(header)})
            for frame in frames:
                if frame.step:
                    put(file, line(frame))
                    steps, seconds = steps + 1, seconds + frame.seconds
                yield frame
            put(file, {"end": {"steps": steps, "seconds": round(seconds, DIGITS)}})
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def put(file: TextIO, content: Mapping[str, Any]) -> None:
    """One line, at once: what has happened is in the file even if the process dies."""
    file.write(json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")
    file.flush()


def line(frame: Frame) -> dict[str, Any]:
    """A step without what the lines before it say already."""
    found = {
        "block": frame.block,
        "step": frame.step,
        "forwards": frame.forwards,
        "seconds": round(frame.seconds, DIGITS),
        "written": [
            [[at, row[at], short(p)] for at, p in sorted(new.items())]
            for row, new in zip(frame.tokens, frame.written, strict=True)
        ],
        "taken_back": frame.taken_back,
    }
    if frame.said:
        found["said"] = [
            [[at, said.best, *map(short, said[1:])] for at, said in sorted(row.items())] for row in frame.said
        ]
    return found


def short(value: float) -> float | None:
    """JSON has no infinities and no nan."""
    return round(value, DIGITS) if math.isfinite(value) else None


def read(path: str | Path) -> Trace:
    """A trace, checked line by line. ValueError says which line of the file is wrong."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no trace: it is not UTF-8 text") from error
    if lines[-1] == "":
        lines.pop()
    header = first(path, lines)
    steps: list[dict[str, Any]] = []
    ended = False
    for number, text in enumerate(lines[1:], 2):
        where = f"{path}, line {number}"
        if ended:
            raise ValueError(f"{where}: something stands after the end of the trace")
        content = loaded(text, where)
        ended = "end" in content
        if not ended:
            check(content, header, where)
            steps.append(content)
    if not ended:
        raise ValueError(f"{path}, line {len(lines)} is the last, and the end of the trace is missing: it was cut off")
    return Trace(header, steps)


def first(path: Path, lines: Sequence[str]) -> Header:
    """The header, of this format and version."""
    where = f"{path}, line 1"
    content = loaded(lines[0] if lines else "", where)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is no trace: its first line should say that its format is {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} is a trace of version {content.get('version')}, and only version {VERSION} is read here: "
            "record it again, or replay it with the release that wrote it"
        )
    fields = Header.__dataclass_fields__
    if missing := [name for name in fields if name not in content]:
        raise ValueError(f"{where}: the trace does not say its {missing[0]}")
    header = Header(**{name: content[name] for name in fields})
    rows = header.rows
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and whole(row) for row in rows):
        raise ValueError(f"{where}: rows should be lists of token ids, at least one of them")
    if not all(header.mask_id in row for row in rows):
        raise ValueError(f"{where}: a row has no blank, so nothing can have been written there")
    if header.lengths != [len(row) for row in rows]:
        raise ValueError(f"{where}: the lengths {header.lengths} are not those of the rows")
    return header


def loaded(text: str, where: str) -> dict[str, Any]:
    """One line as an object."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON, so the trace is damaged or was cut off there") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} should be one JSON object, not a {type(content).__name__}")
    return content


def check(step: Mapping[str, Any], header: Header, where: str) -> None:
    """ValueError unless a step says what a step says, of blanks that the rows have."""
    for name, kind in KINDS.items():
        if not isinstance(step.get(name), kind) or isinstance(step.get(name), bool):
            raise ValueError(f"{where}: {name} is {step.get(name)!r}, which no step has")
    rows = header.rows
    for name, size in (("written", 3), ("taken_back", 1), ("said", 5)):
        found = step.get(name, [[]] * len(rows))
        if not isinstance(found, list) or len(found) != len(rows) or not all(isinstance(row, list) for row in found):
            raise ValueError(f"{where}: {name} should be {len(rows)} lists, one a row")
        for items, row in zip(found, rows, strict=True):
            for item in items:
                values = item if isinstance(item, list) else [item]
                if len(values) != size or not whole(values[:2]) or not all(map(real, values[2:])):
                    raise ValueError(f"{where}: {name} holds {item!r}, expected {ITEM[size]}")
                if not 0 <= values[0] < len(row) or row[values[0]] != header.mask_id:
                    raise ValueError(f"{where}: position {values[0]} was no blank of its row")


def whole(values: Sequence[object]) -> bool:
    """Are they all token ids or positions?"""
    return all(type(value) is int for value in values)


def real(value: object) -> bool:
    """Is it a number, or null in the place of one?"""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def known(value: float | None) -> float:
    """Null stands for what is no finite number."""
    return math.nan if value is None else value
