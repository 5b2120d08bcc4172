"""What every benchmark shares: the machine, its measured matrix peak, interleaved timing, tables and result files."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from unveil import whole
from unveil.evaluate.bench import machine as processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BYTES = 1 if sys.platform == "darwin" else 1024  # in one unit of ru_maxrss


def stamp() -> dict[str, object]:
    """When, on what machine and from which commit a number comes."""
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "machine": machine()}


def commit() -> str:
    """The short hash of the checkout, "+" when files differ from it, "unknown" outside of git."""
    try:
        short = git("rev-parse", "--short", "HEAD")
        return short + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, object]:
    """What `unveil bench` notes of the machine, and its memory, instructions and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        **processor(),
        "memory_gb": round(memory / 1e9, 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def peak(size: int = 2048, seconds: float = 2.0, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of the best square matrix product seen within `seconds`."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out, best, until = torch.empty_like(a), float("inf"), time.perf_counter() + seconds
    while True:
        best = min(best, timed(lambda: torch.mm(a, b, out=out)))
        if time.perf_counter() > until:
            return 2 * size**3 / best


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleaved(arms: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each arm, taken in turns so that a change of the machine's pace hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warmup + repeats):
        for name, work in arms.items():
            seconds = timed(work)
            if turn >= warmup:
                found[name].append(seconds)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and what lies around it."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "runs": len(values)}


def resident() -> int:
    """Peak resident bytes of this process so far. Linux counts the process that started it into ru_maxrss, not here."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES


def aside(script: str, *words: str) -> dict:
    """Run one of these scripts in a process of its own; the JSON object that is its last line."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def put(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.put(path, text)
    return path


class Report:
    """Tables for the terminal, for a Markdown page, and the numbers behind them."""

    def __init__(self, name: str, folder: Path = RESULTS, console: Console | None = None):
        self.name, self.folder = name, folder
        self.console = console or Console(width=None if sys.stdout.isatty() else 140)
        self.pages: list[str] = []

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table, and keep it for the Markdown file. The first column is text, the others numbers."""
        shown = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            shown.add_column(column, justify="right" if index else "left")
        cells = [[cell(value) for value in row] for row in rows]
        for row in cells:
            shown.add_row(*row)
        self.console.print(shown)
        lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)], *cells]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        self.pages.append(f"**{title}**\n\n{body}\n")

    def write(self, numbers: Mapping[str, object]) -> Path:
        """`NAME.json` with everything, `NAME.md` with the tables."""
        put(self.folder / f"{self.name}.md", "\n".join(self.pages))
        path = put(self.folder / f"{self.name}.json", json.dumps({**stamp(), **numbers}, indent=1) + "\n")
        self.console.print(f"written: {path}", highlight=False, soft_wrap=True)
        return path


def cell(value: object) -> str:
    """A table's number at three or four digits; "-" for what does not exist."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def threads(count: int | None) -> None:
    """Use so many, or PyTorch's choice."""
    if count:
        torch.set_num_threads(count)


if __name__ == "__main__":
    for key, value in stamp().items():
        print(f"{key}: {value}")
    print(f"float32 matrix products: {peak() / 1e9:.0f} GFLOP/s")
