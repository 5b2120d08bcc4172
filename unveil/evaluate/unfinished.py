"""What of a measurement is done so far, kept in a file so that one that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..whole import put
from .problems import Setting

FILE = "unfinished.json"


@dataclass
class Unfinished:
    """The figures of each way to decode, or of each model at each task, by name; written whole after each added one.

    `asked` decides the figures: what was kept for anything else is not used.
    """

    path: Path | None = None  # None: nothing is kept
    asked: Mapping[str, object] = field(default_factory=dict)
    what: str = "bench"  # in words
    ways: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    def resume(self, discard: bool = False) -> int:
        """Take up what is there; in how many ways something is measured.

        ValueError when it was asked for by other options, unless it may be discarded.
        """
        if self.path is None or not self.path.is_file():
            return 0
        found = json.loads(self.path.read_text(encoding="utf-8"))
        there, here = found["asked"], json.loads(json.dumps(self.asked))
        other = [f"{name} ({there.get(name)!r} there, {value!r} here)" for name, value in here.items()]
        other = [told for told, name in zip(other, here, strict=True) if there.get(name) != here[name]]
        if not other:
            self.ways = found["ways"]
        elif not discard:
            raise ValueError(
                f"{self.path.parent} holds an unfinished {self.what} of something else, {other[0]}: repeat that "
                "command, choose another folder, or --overwrite"
            )
        return len(self.ways)

    def of(self, role: str, setting: Setting) -> dict[str, Any]:
        """What is known of this way to decode."""
        return self.part(json.dumps([role, asdict(setting)]))

    def part(self, name: str) -> dict[str, Any]:
        """What is known of the part of this name, to be added to."""
        return self.ways.setdefault(name, {})

    def keep(self) -> None:
        """Write everything."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        put(self.path, json.dumps({"asked": self.asked, "ways": self.ways}))


def files(folder: Path) -> str:
    """Stands for a checkpoint as it lies there: another one in its place has other sizes or times."""
    facts = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
    return blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
