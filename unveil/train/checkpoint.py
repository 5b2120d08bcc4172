"""Folders that hold all of a training run at one step: whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..whole import put
from .machine import first_row, local
from .ranks import ALONE, Ranks

STATE = "state.json"
DICE = "rng"  # the file of the generators' states, which the first process writes alone
SHARDING, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"  # torch.distributed.checkpoint's words for pieces of tensors
POLL = 0.05  # seconds
OURS = ("checkpoints", "samples", "tensorboard")  # the folders a run makes in its output folder


def claim(out: Path, resume: bool, overwrite: bool, ranks: Ranks = ALONE) -> Path | None:
    """Make sure that the folder is ours to write in; the checkpoint to start from."""
    ranks.led(lambda: clear(out, resume, overwrite))
    folder = out / "checkpoints"
    start = newest(folder, ranks) if resume else None
    if resume and start is None and ranks.led(lambda: "some" if listed(folder) else ""):
        raise ValueError(f"every checkpoint in {folder} is damaged; overwrite begins again")
    return start


def clear(out: Path, resume: bool, overwrite: bool) -> str:
    """Refuse a folder that is not ours to write in; take away what `overwrite` discards and what a kill left behind."""
    if resume and overwrite:
        raise ValueError("resume continues the run in a folder and overwrite discards it: give one of them")
    if resume:
        if not out.is_dir():
            raise ValueError(f"there is no run to resume at {out}")
        sweep(out / "checkpoints")
        return ""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the output is a folder")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} exists; resume (--resume) continues it and overwrite (--overwrite) begins again")
        for name in OURS:
            shutil.rmtree(out / name, ignore_errors=True)
    return ""


@dataclass
class Part:
    """The rows of a tensor that one process has; without dimensions or shared with nobody, all of it."""

    tensor: Tensor
    start: int = 0  # where in the whole tensor they begin


def parts(tensors: dict[str, dict[str, Tensor]], copy: bool, lead: bool = True) -> dict[str, dict[str, Part]]:
    """What this process has of the tensors; those without dimensions only where `lead`.

    A copy lies on the CPU, and training may go on while it is written.
    """
    found: dict[str, dict[str, Part]] = {}
    for name, content in tensors.items():
        for key, tensor in content.items():
            mine = local(tensor)
            if mine.numel() and (mine.dim() or lead):
                kept = Part(mine.to("cpu", copy=True) if copy else mine, first_row(tensor))
                found.setdefault(name, {})[key] = kept
    return found


@dataclass
class Saving:
    """A checkpoint on its way to `folder/step-XXXXXXXX`, in a thread or at once.

    The first `writers` processes each write what they have, flush it, and leave a note of its checksums; the first of
    them waits for these notes, adds `state`, and gives the folder its name. No process waits for a message, so none has
    to stop training. Files: `NAME.safetensors` when one process writes; else `NAME/00000-of-00002.safetensors`, whose
    header says where its rows begin, in the words of torch.distributed.checkpoint, which can read these folders too.
    """

    folder: Path
    step: int
    parts: dict[str, dict[str, Part]]  # by file
    state: dict
    keep: int  # how many checkpoints stay
    rank: int = 0
    writers: int = 1
    trouble: OSError | None = None
    abandoned: Event = field(default_factory=Event)
    thread: Thread | None = None

    @property
    def path(self) -> Path:
        return self.folder / f"step-{self.step:08d}"

    @property
    def partial(self) -> Path:
        return self.folder / f".partial-{self.step:08d}"

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def begin(self) -> None:
        """Write while training goes on. `trouble` is what came of it once `running` is false."""
        self.thread = Thread(target=self.write, daemon=True)
        self.thread.start()

    def write(self) -> None:
        """Everything; `trouble` when the disk does not take it, with the older checkpoints untouched."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            sums = dict(self.file(name, content) for name, content in self.parts.items() if content)
            put(self.partial / f"{self.rank}.json", json.dumps(sums))
            if self.rank == 0:
                self.finish()
        except (OSError, SafetensorError) as error:
            last = newest(self.folder)
            self.trouble = OSError(
                f"could not save the checkpoint of step {self.step} in {self.folder} ({error}); "
                + (f"the last good one is {last}" if last else "there is no earlier one")
            )
            self.trouble.__cause__ = error

    def abandon(self) -> None:
        """Stop waiting for others, who have stopped waiting too."""
        self.abandoned.set()
        if self.thread is not None:
            self.thread.join()

    def file(self, name: str, content: dict[str, Part]) -> tuple[str, str]:
        """Write one file: its name and its checksum."""
        tensors = {key: each.tensor.contiguous() for key, each in content.items()}
        file = self.partial / f"{name}.safetensors"
        if self.writers == 1 or name == DICE:
            save_file(tensors, file)
        else:
            file = self.partial / name / f"{self.rank:05d}-of-{self.writers:05d}.safetensors"
            file.parent.mkdir(exist_ok=True)
            begins = {key: [each.start, *[0] * each.tensor.dim()][: each.tensor.dim()] for key, each in content.items()}
            places = {key: {OFFSETS: begin} for key, begin in begins.items()}
            save_file(tensors, file, metadata={SHARDING: json.dumps(places)})  # one entry: several have no fixed order
        settle(file)
        return str(file.relative_to(self.partial)), digest(file)

    def finish(self) -> None:
        """Wait for all the notes, and make the folder a checkpoint."""
        notes = [self.partial / f"{rank}.json" for rank in range(self.writers)]
        while not all(note.exists() for note in notes):
            if self.abandoned.wait(POLL):
                raise OSError("another process could not write its part")
        sums = {name: s for note in notes for name, s in json.loads(note.read_text(encoding="utf-8")).items()}
        for note in notes:
            note.unlink()
        state = {**self.state, "step": self.step, "checksums": sums}
        (self.partial / STATE).write_text(json.dumps({"sum": seal(state), "state": state}), encoding="utf-8")
        settle(self.partial / STATE)
        if self.path.exists():  # a damaged one that was skipped when the run was resumed
            shutil.rmtree(self.path)
        os.replace(self.partial, self.path)
        settle(self.folder)
        older = [p for p in listed(self.folder) if number(p) <= self.step]
        for extra in older[self.keep :] if self.keep else []:
            shutil.rmtree(extra)


def newest(folder: Path, ranks: Ranks = ALONE) -> Path | None:
    """The latest whole checkpoint; what is damaged is skipped with a warning that names it.

    Several processes look together, each at its share of the files.
    """
    for name in json.loads(ranks.led(lambda: json.dumps([path.name for path in listed(folder)]))):
        path = folder / name
        found = [each for each in ranks.words(damage(path, ranks.rank, ranks.world) or "") if each]
        if not found:
            return path
        if ranks.leads:
            warnings.warn(f"skipping the damaged checkpoint {path}: {found[0]}", stacklevel=2)
    return None


def listed(folder: Path) -> list[Path]:
    """Every checkpoint in the folder, whole or not, the latest first."""
    return sorted((p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)), key=number, reverse=True)


def number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def damage(path: Path, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with a checkpoint; None when every checksum holds. Of `world` shares of its files, share `rank`."""
    try:
        for name, expected in list(read_state(path)["checksums"].items())[rank::world]:
            if digest(path / name) != expected:
                return f"the checksum of {name} does not hold"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def read_state(path: Path) -> dict:
    """state.json; ValueError when it is not what was written."""
    sealed = json.loads((path / STATE).read_text(encoding="utf-8"))
    if sealed["sum"] != seal(sealed["state"]):
        raise ValueError(f"the checksum of {STATE} does not hold")
    return sealed["state"]


class Stored:
    """The tensors of a checkpoint, in however many pieces they were written, and its state."""

    def __init__(self, path: Path):
        self.path, self.state = path, read_state(path)
        self.files: dict[str, list[Path]] = {}
        for name in self.state["checksums"]:
            self.files.setdefault(name.split("/")[0].removesuffix(".safetensors"), []).append(path / name)
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # of the whole tensors, by file and name
        for name in self.files:
            found = self.shapes.setdefault(name, {})
            for key, start, piece in (each for file in self.opened(name) for each in pieces(file)):
                rows = max(start + piece[0], found[key][0] if key in found else 0) if piece else 0
                found[key] = (rows, *piece[1:]) if piece else ()

    def opened(self, name: str) -> Iterator[Any]:
        for path in self.files[name]:
            with safe_open(path, framework="pt") as file:
                yield file

    def read(self, name: str, wanted: dict[str, Part]) -> None:
        """Fill these tensors with the rows that they stand for."""
        for file in self.opened(name):
            for key, start, piece in pieces(file):
                if key not in wanted:
                    continue
                to, first = wanted[key].tensor, wanted[key].start
                if not piece:
                    to.copy_(file.get_tensor(key))
                    continue
                begin, end = max(start, first), min(start + piece[0], first + to.shape[0])
                if begin < end:
                    to[begin - first : end - first].copy_(file.get_slice(key)[begin - start : end - start])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of a file that one process wrote."""
        return load_file(self.path / f"{name}.safetensors")


def pieces(file: Any) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Of every tensor in an open file: its name, which row of the whole tensor comes first, and its shape here."""
    said = file.metadata() or {}
    places = json.loads(said[SHARDING]) if SHARDING in said else {}
    for key in sorted(file.keys()):
        shape = tuple(file.get_slice(key).get_shape())
        yield key, places[key][OFFSETS][0] if shape and key in places else 0, shape


def sweep(folder: Path) -> None:
    """Remove what a process that died while writing left behind."""
    for partial in folder.glob(".partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(state: dict) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def settle(path: Path) -> None:
    """Make the disk keep what the page cache holds, so that a rename never outlives its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def dice() -> tuple[dict[str, Tensor], dict]:
    """The states of all random number generators, on a GPU those of this process's: tensors, and what is JSON."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda.0"] = torch.cuda.get_rng_state()
    kind, words, *rest = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    tensors["numpy"] = torch.from_numpy(np.asarray(words).astype(np.int64))
    return tensors, {"numpy": [kind, *rest], "python": [version, list(numbers), gauss]}


def set_dice(tensors: dict[str, Tensor], plain: dict) -> None:
    """The inverse of `dice`."""
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available() and "cuda.0" in tensors:
        torch.cuda.set_rng_state(tensors["cuda.0"])
    kind, *rest = plain["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))


def owned(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, one name for each tensor."""
    saved = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in saved}
    return {**{name: value.detach() for name, value in model.named_parameters()}, **buffers}
