"""Run Python programs that nobody has read, each in a confined process of its own, and say how they ended.

What confines a program is in `confine.py`; what that guarantees, and what it does not, is in docs/sandbox.md.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

CONFINE = Path(__file__).with_name("confine.py")
GRACE = 5.0  # seconds for a killed process to be gone
Reason = Literal["passed", "timeout", "memory", "exception", "exit", "killed"]


@dataclass(frozen=True)
class Limits:
    """What one program may take.

    wall       seconds on the clock, the start of the interpreter included
    cpu        seconds of processor time, in whole seconds, of each process
    memory     bytes of address space of each process
    file       bytes of one file
    folder     bytes of the whole working folder, where the kernel allows one to be mounted
    processes  processes and threads beside the program itself
    output     bytes of what it prints that are kept; the rest is read and dropped
    """

    wall: float = 20.0
    cpu: int = 5
    memory: int = 512 << 20
    file: int = 8 << 20
    folder: int = 32 << 20
    processes: int = 16
    output: int = 16 << 10

    def __post_init__(self):
        for name, least in (("wall", 0.01), ("cpu", 1), ("memory", 64 << 20), ("file", 0), ("folder", 1 << 16)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.processes < 0 or self.output < 0:
            raise ValueError(f"expected processes and output of at least 0, got {self.processes} and {self.output}")


@dataclass(frozen=True)
class Result:
    """How a program ended.

    reason   passed: it came to its end, no exception left it; timeout: out of wall or processor time; memory: a
             MemoryError left it; exception: another one did; exit: it left before its end, whatever the status;
             killed: by a signal
    error    the exception's name, the signal's name, the exit status, or ""
    message  the exception's words, cut
    line     of the program, that the exception came from
    output   the beginning of what it printed on both streams; says nothing about how it ended
    """

    reason: Reason
    error: str
    message: str
    line: int | None
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Did the program come to its end?"""
        return self.reason == "passed"

    def __str__(self) -> str:
        at = "" if self.line is None else f" in line {self.line}"
        return self.reason if not self.error else f"{self.reason}: {self.error}{at}"


PLAIN = Limits()


def run(program: str, limits: Limits = PLAIN) -> Result:
    """Run a program text and say how it ended. Does not raise for anything the program does.

    OSError when the sandbox itself cannot be set up.
    """
    if os.name != "posix":
        raise OSError("programs are confined by means of Unix, which this system lacks")
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="unveil-sandbox-"))
    try:
        return Run(program, limits, place, began).finish()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def run_all(programs: Sequence[str], limits: Limits = PLAIN, workers: int | None = None) -> Iterator[Result]:
    """The results in the order of the programs, `workers` at a time; None: as many as there are cores."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; expected at least one")
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        yield from pool.map(partial(run, limits=limits), programs)


@cache
def guards() -> dict[str, bool]:
    """What the kernel guarantees here: network, processes, counted, folder, landlock, filter (docs/sandbox.md)."""
    with tempfile.TemporaryDirectory(prefix="unveil-sandbox-") as place:
        run = Run("", PLAIN, Path(place), time.monotonic())
        run.finish()
    return {name: bool(value) for name, value in run.lines()[0].items()}


class Run:
    """One program while it runs: what it printed, and what its process reported on a socket of its own.

    `kernel` False confines it as on a system whose kernel offers nothing but resource limits.
    """

    def __init__(self, program: str, limits: Limits, place: Path, began: float, *, kernel: bool = True):
        self.limits, self.began = limits, began
        self.token = secrets.token_hex(16)
        self.printed, self.reported = bytearray(), bytearray()
        folder, text = place / "work", place / "program.py"
        folder.mkdir(mode=0o700)
        text.write_text(program, encoding="utf-8", errors="surrogatepass")
        place.chmod(0o711)  # root's programs run as another user
        self.ours, theirs = socket.socketpair()
        self.ours.sendall(self.token.encode())
        wanted = {
            **{"folder": str(folder), "program": str(text), "report": theirs.fileno(), "folder_size": limits.folder},
            **{"cpu": limits.cpu, "memory": limits.memory, "file": limits.file, "processes": limits.processes},
            "kernel": kernel,
        }
        # -P and -s with an environment of our own are what -I is, but for the hash seed, which -I would leave random:
        # a program that depends on the order of a set should end the same way every time.
        flags = ("-P", "-s", "-S", "-B", "-X", "utf8")
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *flags, str(CONFINE), json.dumps(wanted)],
                **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
                **{"env": {"PYTHONHASHSEED": "0"}, "cwd": folder, "pass_fds": (theirs.fileno(),)},
                start_new_session=True,
            )

    def finish(self) -> Result:
        """Read until everything is closed or time is up, end what is left, and judge."""
        try:
            late = not self.read(self.began + self.limits.wall)
        finally:
            self.end()
        seconds = time.monotonic() - self.began
        output = self.printed.decode("utf-8", "replace")
        lines = self.lines()
        if not lines:
            if late:
                return Result("timeout", "", "", None, output, seconds)
            raise OSError(f"the sandbox could not be set up: {output.strip()[-300:] or 'the process said nothing'}")
        return Result(*self.judged(late, lines[1:]), output, seconds)

    def read(self, until: float) -> bool:
        """Take in what comes; False when time is up before both ends are closed."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as both:
            both.register(self.process.stdout, selectors.EVENT_READ, (self.printed, self.limits.output))
            both.register(self.ours, selectors.EVENT_READ, (self.reported, 1 << 16))
            while both.get_map():
                left = until - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in both.select(left):
                    kept, most = key.data
                    try:
                        found = os.read(key.fd, 1 << 16)
                    except ConnectionResetError:  # it left without reading the token
                        found = b""
                    kept += found[: max(most - len(kept), 0)]
                    if not found:
                        both.unregister(key.fileobj)
        return True

    def end(self) -> None:
        """Nothing that the program began is left: its group is killed, and with it its process namespace."""
        assert self.process.stdout is not None
        with suppress(ProcessLookupError, PermissionError):  # gone, or (on macOS) a zombie
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdout.close()
        self.ours.close()
        with suppress(subprocess.TimeoutExpired):  # it is in the kernel's hands then, and reaped when they let it go
            self.process.wait(GRACE)

    def lines(self) -> list[dict]:
        """What the process reported, as far as it makes sense: the program can write here as well."""
        found = []
        for line in bytes(self.reported).split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

    def judged(self, late: bool, said: list[dict]) -> tuple[Reason, str, str, int | None]:
        """Reason, error, message and line."""
        if late:
            return "timeout", "", "", None
        status = self.process.returncode
        last = said[-1] if said else {}
        if last == {"end": self.token} and status == 0:
            return "passed", "", "", None
        if isinstance(error := last.get("error"), str) and status == 1:
            message, line = str(last.get("message", "")), last.get("line")
            reason = "memory" if error == "MemoryError" else "exit" if error == "SystemExit" else "exception"
            return reason, error[:200], message[:500], line if isinstance(line, int) else None
        number = -status if status < 0 else status - 128
        if number in (signal.SIGXCPU, signal.SIGKILL) and time.monotonic() - self.began >= self.limits.cpu:
            return "timeout", "", "", None
        if number in {each.value for each in signal.Signals}:
            return "killed", signal.Signals(number).name, "", None
        return "exit", str(status), "", None
