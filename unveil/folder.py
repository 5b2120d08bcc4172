"""A checkpoint's folder: found, read without running anything in it, and exchanged whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open

BUILT_IN = Path(__file__).parent / "models"
WANTED = ["*.json", "*.safetensors", "merges.txt", "vocab.txt", "tokenizer.model", "*.jinja"]
PATIENCE = 0.2  # seconds
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def locate(path: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, fetched from the hub when it is neither here nor built in."""
    name = os.fspath(path)
    folder = Path(name).expanduser()
    recover(folder)
    if name and folder.is_dir():
        return folder
    if name and folder.exists():
        raise ValueError(f"{name} is a file: expected the folder of a checkpoint, with config.json and *.safetensors")
    if (BUILT_IN / name / "config.json").is_file():
        return BUILT_IN / name
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise ValueError(f"there is no folder {name!r}, and it is not a hub id such as Qwen/Qwen2.5-0.5B")
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except GatedRepoError as error:
        raise ValueError(f"{name} is gated: accept its terms on the hub and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"there is no folder {name}, and no such repository on the hub ({built_in()})") from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = "the hub could not be reached and nothing is cached"
        raise ValueError(f"there is no folder {name}, and as a hub id: {reason} ({built_in()})") from error


def built_in() -> str:
    """The names of the models inside the package, for messages."""
    names = sorted(each.parent.name for each in BUILT_IN.glob("*/config.json"))
    return f"built in: {', '.join(names)}" if names else "no models are built in"


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold one JSON object, not a {type(found).__name__}")
    return found


def read_config(folder: Path) -> dict:
    """config.json, refusing what is no checkpoint."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise ValueError(f"{folder} holds quantised weights, which are not supported: use the original checkpoint")
    return config


@contextmanager
def opened(folder: Path) -> Iterator[dict[str, Any]]:
    """All tensors of a checkpoint by name, as open files from which `get_tensor(name)` reads one at a time."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
        if absent := [file.name for file in files if not file.is_file()]:
            raise ValueError(f"{folder} is incomplete: {absent[0]} is named in {index.name} and missing")
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter"))
    if not files:
        refuse_without_weights(folder)
    with ExitStack() as stack:
        tensors = {}
        for file in files:
            try:
                handle = stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is truncated or damaged ({error}): fetch or save it again") from error
            tensors.update(dict.fromkeys(handle.keys(), handle))
        yield tensors


def refuse_without_weights(folder: Path) -> None:
    if pickles := [file.name for pattern in PICKLES for file in folder.glob(pattern)]:
        raise ValueError(
            f"{folder} has only {pickles[0]}: pickle files can run code when they are read, so they never are; "
            "convert the checkpoint to safetensors"
        )
    if (folder / "adapter_model.safetensors").is_file():
        raise ValueError(f"{folder} is a LoRA adapter: merge it into its base model first")
    raise ValueError(f"{folder} is not a checkpoint: it has no *.safetensors (pickle files are never read)")


def exchange(new: Path, place: Path) -> None:
    """Put a finished folder in its place; the old one is deleted only once the new one is there.

    Two renames do this. Whoever looks for the folder after a process was killed between them calls `recover` first.
    """
    old = place.with_name(f".{place.name}.{os.getpid()}.replaced")
    if place.is_dir():
        os.replace(place, old)
    try:
        os.replace(new, place)
    except OSError:
        if old.is_dir():
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(place: Path) -> None:
    """Bring back the folder that an exchange had set aside when it was killed, and warn that this was done."""
    if not place.name or place.exists():
        return
    aside = sorted(place.parent.glob(f".{escape(place.name)}.*.replaced"), key=lambda old: old.stat().st_mtime)
    if not aside:
        return
    time.sleep(PATIENCE)  # it may be a living process, between its two renames just now
    if place.exists():
        return
    with suppress(FileNotFoundError):  # another process may recover it too
        os.replace(aside[-1], place)
        told = f"a save was killed before {place} was in its place; what had been there before it is there again"
        warnings.warn(told, stacklevel=2)
