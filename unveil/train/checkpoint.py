"""Folders that hold all of a training run at one step: whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STATE = "state.json"
OURS = ("checkpoints", "samples", "tensorboard")  # the folders a run makes in its output folder


def claim(out: Path, resume: bool, overwrite: bool) -> Path | None:
    """Make sure that the folder is ours to write in; the checkpoint to start from."""
    if resume and overwrite:
        raise ValueError("resume continues the run in a folder and overwrite discards it: give one of them")
    folder = out / "checkpoints"
    if resume:
        if not out.is_dir():
            raise ValueError(f"there is no run to resume at {out}")
        sweep(folder)
        start = newest(folder)
        if start is None and listed(folder):
            raise ValueError(f"every checkpoint in {folder} is damaged; overwrite begins again")
        return start
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; the output is a folder")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} exists; resume (--resume) continues it and overwrite (--overwrite) begins again")
        for name in OURS:
            shutil.rmtree(out / name, ignore_errors=True)
    return None


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int) -> Path:
    """Write `folder/step-XXXXXXXX/` with a safetensors file for each entry of `tensors`; keep `keep` such folders.

    OSError, with the older checkpoints untouched, when the disk does not take it.
    """
    path = folder / f"step-{step:08d}"
    if path.exists() and not damage(path):
        return path
    partial = folder / f".partial-{step:08d}-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        sums = {}
        for name, content in tensors.items():
            file = partial / f"{name}.safetensors"
            save_file({key: value.detach().contiguous() for key, value in content.items()}, file)
            settle(file)
            sums[file.name] = digest(file)
        state = {**state, "step": step, "checksums": sums}
        (partial / STATE).write_text(json.dumps({"sum": seal(state), "state": state}), encoding="utf-8")
        settle(partial / STATE)
        if path.exists():  # a damaged one that was skipped when the run was resumed
            shutil.rmtree(path)
        os.replace(partial, path)
        settle(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = newest(folder)
        raise OSError(
            f"could not save the checkpoint of step {step} in {folder} ({error}); "
            + (f"the last good one is {last}" if last else "there is no earlier one")
        ) from error
    if keep:
        older = [p for p in listed(folder) if number(p) <= step]
        for extra in older[keep:]:
            shutil.rmtree(extra)
    return path


def newest(folder: Path) -> Path | None:
    """The latest whole checkpoint; what is damaged is skipped with a warning that names it."""
    for path in listed(folder):
        trouble = damage(path)
        if trouble is None:
            return path
        warnings.warn(f"skipping the damaged checkpoint {path}: {trouble}", stacklevel=2)
    return None


def listed(folder: Path) -> list[Path]:
    """Every checkpoint in the folder, whole or not, the latest first."""
    return sorted((p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)), key=number, reverse=True)


def number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None when every checksum holds."""
    try:
        for name, expected in read_state(path)["checksums"].items():
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


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Tensors by file and name, and the state."""
    state = read_state(path)
    return {name.removesuffix(".safetensors"): load_file(path / name) for name in state["checksums"]}, state


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
    """The states of all random number generators: tensors, and what is JSON."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, words, *rest = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    tensors["numpy"] = torch.from_numpy(np.asarray(words).astype(np.int64))
    return tensors, {"numpy": [kind, *rest], "python": [version, list(numbers), gauss]}


def set_dice(tensors: dict[str, Tensor], plain: dict) -> None:
    """The inverse of `dice`."""
    torch.set_rng_state(tensors["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)
    kind, *rest = plain["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))


def owned(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, one name for each tensor."""
    saved = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in saved}
    return {**{name: value.detach() for name, value in model.named_parameters()}, **buffers}


def put(path: Path, content: str) -> None:
    """A text file that is never half there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
