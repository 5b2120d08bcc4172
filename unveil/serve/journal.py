"""What a server says of itself: sentences on stderr, and a log as lines of JSON that never keeps it from serving."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path


def say(sentence: str) -> None:
    """One line for whoever started the server; nothing happens where stderr is closed or full."""
    with contextlib.suppress(OSError, ValueError):
        print(f"unveil: {sentence}", file=sys.stderr, flush=True)


class Journal:
    """Appends to a file. A line that cannot be written is dropped and counted; the first one is told on stderr.

    Lines hold "time" (seconds since 1970), "event" and the event's own fields. Prompts and answers never come here.
    """

    def __init__(self, path: Path | None = None):
        """Without a path it keeps nothing. OSError when the file cannot be opened at all."""
        self.path = path
        self.dropped = 0
        self.file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        self.torn = False  # the file ends within a line

    def write(self, event: str, **fields: str | int | float | bool | None) -> None:
        """One line, at once: a process that dies loses none."""
        if self.file is None:
            return
        content = {"time": round(time.time(), 3), "event": event, **fields}
        data = b"\n" * self.torn + json.dumps(content).encode() + b"\n"
        try:
            written = os.write(self.file, data)
        except OSError as error:
            self._drop((error.strerror or "it cannot be written").lower())
            return
        self.torn = written < len(data)
        if self.torn:
            self._drop("no space left on device")

    def _drop(self, reason: str) -> None:
        if not self.dropped:
            say(f"the log {self.path} drops lines, and serving goes on: {reason}")
        self.dropped += 1

    def close(self) -> None:
        """Nothing is written after this."""
        if self.file is not None:
            os.close(self.file)
            self.file = None
