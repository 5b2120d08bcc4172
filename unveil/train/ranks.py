"""What a training run asks of the processes that share it, answered for one process; `several` answers for more."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..objectives import Batch
from .recipe import Recipe

T = TypeVar("T")
JOB = ".job"  # the file in a run's folder that names the launch that works there


class Ranks:
    """One process, which has all of the weights and reads all of the rows."""

    rank = 0  # this process's number
    world = 1  # how many there are
    writers = 1  # the first so many of them hold each weight exactly once between them
    divides = 1  # what the backward pass has divided the sum of the gradients by
    sharded = False  # is no process's share of the weights whole?

    def __init__(self, device: torch.device | None = None):
        self.device = device  # where the model is to be; None: where it is

    @property
    def leads(self) -> bool:
        """Is this the process that prints and writes?"""
        return self.rank == 0

    def check(self, recipe: Recipe) -> None:
        """ValueError when these processes cannot follow the recipe."""

    def spread(self, model: Denoiser, recipe: Recipe, low: bool) -> None:
        """Leave this process its share of the weights. `low`: matrix products are taken in bfloat16."""
        if self.device is not None:
            model.to(self.device)

    def share(self, batch: Batch) -> Batch:
        """The rows of a step that are this process's."""
        return batch

    def micro(self, accumulate: int) -> int:
        """Into how many parts this process splits its rows, so that no part has more rows than in one process."""
        return accumulate

    def sums(self, model: Denoiser, last: bool) -> None:
        """Before a micro-batch: is it the step's last, after which replicas sum their gradients?"""

    def gather(self, values: Tensor) -> Tensor:
        """(...) of every process to (world, ...), the same on all."""
        return values[None]

    def same(self, value: float) -> float:
        """The first process's value."""
        return value

    def words(self, text: str) -> list[str]:
        """A text of every process, by rank."""
        return [text]

    def led(self, work: Callable[[], str]) -> str:
        """What the first process makes of it. What it refuses, all refuse."""
        return work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """`work` in every process, each machine's first one ahead of its others, which then find its files.

        What one refuses, all refuse.
        """
        return work()

    def wait(self) -> None:
        """Until all are here."""

    def forget(self, model: Denoiser) -> None:
        """Drop what a pass without a backward pass has gathered, before the weights change under it."""

    @contextmanager
    def gathered(self, model: Denoiser) -> Iterator[None]:
        """The first process has all of the weights inside, on the CPU."""
        yield

    def job(self) -> str:
        """What names this launch, also after its processes were started again; empty without a launcher."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return ""
        given = os.environ["TORCHELASTIC_RUN_ID"]
        return given if given not in ("", "none") else f"{socket.gethostname()}:{os.getppid()}"

    def way(self, out: Path, resume: bool, overwrite: bool) -> tuple[bool, bool]:
        """`resume` and `overwrite` as the first process was told; or, where the launcher has started these processes
        anew to go on with what it began in the folder, resume."""
        file = out / JOB

        def found() -> str:
            begun = file.read_text(encoding="utf-8") if self.job() and file.is_file() else ""
            return "again" if begun and begun == self.job() else f"{resume} {overwrite}"

        told = self.led(found)
        return (True, False) if told == "again" else (told.startswith("True"), told.endswith("True"))


ALONE = Ranks()
