"""What a training run says: JSON lines, TensorBoard, and a progress bar or a line now and then."""

from __future__ import annotations

import json
import math
import time
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..whole import put

PAUSE = 30  # seconds between two lines when the console is not a terminal


class Metrics:
    """`metrics.jsonl` in the output folder, one object a line, and TensorBoard's events when it is installed."""

    def __init__(self, out: Path, after: int | None = None, quiet: bool = False):
        """`after`: keep an earlier run's lines up to this step; None: begin anew. `quiet`: another process writes."""
        file = out / "metrics.jsonl"
        self.history = [line for line in past(file) if line["step"] <= after] if after is not None else []
        self.board = self.stream = None
        if quiet:
            return
        put(file, "".join(json.dumps(line) + "\n" for line in self.history))
        self.stream = file.open("a", encoding="utf-8", buffering=1)
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=None if after is None else after + 1)

    def write(self, line: dict) -> None:
        self.history.append(line)
        if self.stream is not None:
            self.stream.write(json.dumps(line) + "\n")
        if self.board is not None:
            flat = {**line, **{f"parts/{name}": value for name, value in line.get("parts", {}).items()}}
            for name, value in flat.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        if self.board is not None:
            self.board.close()


def past(file: Path) -> list[dict]:
    """The whole lines of an earlier run; one that was cut off by a kill is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Display:
    """A bar on a terminal; elsewhere a line at the start, every half minute and at the end."""

    def __init__(self, console: Console, updates: int | None):
        self.console, self.updates, self.spoken = console, updates, -math.inf
        shown = TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  step {task.fields[step]}")
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        columns = (BarColumn(), TaskProgressColumn(), shown, *times)
        self.bar = Progress(*columns, console=console, refresh_per_second=4) if console.is_terminal else None
        self.task = self.bar.add_task("", total=1.0, loss="-", speed="-", step="0") if self.bar else None
        if self.bar:
            self.bar.start()

    def show(self, line: dict, share: float, speed: float) -> None:
        """`share` in [0, 1] of the run has passed."""
        step = f"{line['step']:,}" + (f"/{self.updates:,}" if self.updates else "")
        loss = f"{line['loss']:.4f}"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=share, loss=loss, speed=f"{speed:,.0f}", step=step)
        elif time.monotonic() - self.spoken >= PAUSE or share >= 1:
            self.spoken = time.monotonic()
            left = line["seconds"] * (1 - share) / share if share else 0.0
            self.say(f"step {step}  loss {loss}  {speed:,.0f} tokens/s  {share:.0%}, {left / 60:.1f} min left")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
