"""Folders of adapters as peft writes and reads them, tied to the base that they were trained on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import families
from .families import Family
from .folder import locate, opened, read_json
from .nn.adapters import Adapter, Lora, Pair, attach, described, pairs
from .nn.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # before every name, in peft's layout
UNSUPPORTED = (
    *("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "trainable_token_indices"),
    *("use_dora", "use_qalora", "lora_bias", "target_parameters", "use_bdlora", "arrow_config", "kasa_config"),
)  # what an adapter's config may name, and would change what its matrices mean


def placed(path: str | os.PathLike[str], adapter: str | os.PathLike[str] | None = None) -> tuple[Path, Path | None]:
    """The folder of a checkpoint, and that of an adapter for it; an adapter's own folder leads to the base it names.

    ValueError where one of them is not there, and where two adapters are named.
    """
    folder = locate(path)
    if not (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return folder, None if adapter is None else whole(Path(adapter))
    if adapter is not None:
        raise ValueError(f"{path} is an adapter itself: name its base beside {adapter}, or merge it into that first")
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path} is an adapter that names no base: name the base, and this as its adapter")
    try:
        found = locate(base)
    except ValueError as error:
        raise ValueError(f"the base of the adapter {path} is not at hand: {error}") from error
    if (found / CONFIG).is_file() and not (found / "config.json").is_file():
        raise ValueError(f"the adapter {path} names {base} as its base, which is an adapter too")
    return found, whole(folder)


def whole(folder: Path) -> Path:
    """ValueError where a file of the adapter is missing."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no adapter: it has no {name}")
    return folder


def fingerprint(tensors: Mapping[str, Any]) -> str:
    """What tells a checkpoint's weights from others: the middle row of every tensor, in bfloat16.

    So a copy in bfloat16 is the same base, and no more than a sample of a large checkpoint is read.
    """
    found = blake2b(digest_size=16)
    for name in sorted(tensors):
        part = tensors[name].get_slice(name)
        shape = part.get_shape()
        row = part[shape[0] // 2 : shape[0] // 2 + 1] if shape and shape[0] else torch.zeros(0)
        found.update(f"{name} {shape}".encode())
        found.update(row.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def begin(net: Transformer, lora: Lora, base: str, seed: int = 0) -> None:
    """Freeze `net`, which was loaded from `base`, and attach a new adapter.

    ValueError for targets that the network lacks or its checkpoint joins with others, and where peft is missing.
    """
    folder = locate(base)
    if (folder / CONFIG).is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{base} is an adapter already: merge it into its base first (unveil export), or tune it all")
    family = families.named(net.family or "llama")
    alone = {
        piece.ours[0].removesuffix(".weight"): (name.removesuffix(".weight"), piece.transposed)
        for name, piece in families.layout(family, net).items()
        if len(piece.ours) == 1 and piece.index is None and piece.pairs is None
    }
    layers = lora.layers(net)
    if not layers:
        raise ValueError(f"this network has none of the layers {lora.targets}: an adapter would change nothing")
    if joined := sorted({name.rpartition(".")[2] for name in layers if name not in alone}):
        raise ValueError(
            f"checkpoints of the family {family.name} join {', '.join(joined)} in one tensor or keep it in another "
            "order, where peft's layout has no place for our adapter: choose other targets, or tune all weights"
        )
    with opened(folder) as tensors:
        mark = fingerprint(tensors)
    where = str(folder.resolve()) if Path(base).expanduser().is_dir() else base
    turned = any(alone[name][1] for name in layers)
    net.adapter = Adapter(lora, {name: alone[name][0] for name in layers}, where, mark, turned)
    attach(net, net.adapter, seed)


def write(net: Transformer, folder: Path, about: Mapping[str, Any]) -> None:
    """The adapter that `net` carries, in peft's layout; `about` says how it was made."""
    adapter = net.adapter
    assert adapter is not None
    tensors = {}
    for name, pair in pairs(net, adapter).items():
        stem = PREFIX + adapter.names[name]
        tensors[f"{stem}.lora_A.weight"] = pair.a.detach().cpu().contiguous()
        tensors[f"{stem}.lora_B.weight"] = pair.b.detach().cpu().contiguous()
    told = json.dumps({**about, "base": adapter.fingerprint})
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "unveil": told})
    config = json.dumps(described(adapter), indent=2, sort_keys=True, default=list) + "\n"
    (folder / CONFIG).write_text(config, encoding="utf-8")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # it would be its owner's alone


@dataclass(frozen=True)
class Saved:
    """An adapter as it lies in its folder."""

    folder: Path
    base: str  # as it was called when the adapter was trained; "" where it is not said
    fingerprint: str | None  # of the base; None where another program wrote the adapter
    about: dict[str, Any]  # how it was made
    scale: float
    pairs: dict[str, Pair]  # by the checkpoint's names of the layers


def read(folder: Path) -> Saved:
    """An adapter of peft's, from this program or another; ValueError for what is not plain LoRA."""
    config = read_json(whole(folder) / CONFIG)
    kind = config.get("peft_type")
    extra = [name for name in UNSUPPORTED if config.get(name)] + ["bias"] * (config.get("bias", "none") != "none")
    if kind != "LORA" or extra:
        said = f"a {kind} adapter" if kind != "LORA" else f"an adapter with {extra[0]} = {config[extra[0]]!r}"
        raise ValueError(f"{folder} is {said}: only plain LoRA is supported")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("unveil", "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is truncated or damaged ({error}): fetch or save it again") from error
    found = {}
    for name, a in tensors.items():
        stem, part, _ = name.partition(".lora_A.")
        other = f"{stem}.lora_B.weight"
        if part and other in tensors:
            found[stem.removeprefix(PREFIX)] = Pair(a, tensors[other])
    if not found or len(tensors) != 2 * len(found):
        raise ValueError(f"{folder / WEIGHTS} holds something else than pairs of lora_A and lora_B")
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    mark = told.pop("base", None)
    return Saved(folder, config.get("base_model_name_or_path") or "", mark, told, scale, found)


def changed(net: Transformer, family: Family, saved: Saved) -> set[int]:
    """The ids of the parameters that merging an adapter changes; none for layers that the network lacks."""
    pieces, ours = families.layout(family, net), dict(net.named_parameters())
    found = [pieces.get(f"{name}.weight") or pieces.get(f"{family.prefix}{name}.weight") for name in saved.pairs]
    return {id(ours[name]) for piece in found if piece is not None for name in piece.ours}


@torch.no_grad()
def merge(net: Transformer, family: Family, saved: Saved, mark: str, where: str) -> None:
    """Add an adapter to the weights of `net`, which came from `where` and have the fingerprint `mark`.

    ValueError, with nothing changed, when the adapter is of another base.
    """
    named = f" ({saved.base})" if saved.base else ""
    if saved.fingerprint not in (None, mark):
        raise ValueError(f"the adapter {saved.folder} was trained on another base{named} than {where}")
    pieces, ours = families.layout(family, net), dict(net.named_parameters())
    added = []
    for name, pair in saved.pairs.items():
        piece = pieces.get(f"{name}.weight") or pieces.get(f"{family.prefix}{name}.weight")
        if piece is None or piece.index is not None:
            raise ValueError(f"the adapter {saved.folder} is of another base{named}: {where} has no layer {name}")
        parts = piece.parts(ours)
        rows = [len(part) for part in parts]
        if (pair.b.shape[0], pair.a.shape[1]) != (sum(rows), parts[0].shape[1]) or pair.a.shape[0] != pair.b.shape[1]:
            raise ValueError(
                f"the adapter {saved.folder} is of another base{named}: its {name} is {pair.b.shape[0]} x "
                f"{pair.a.shape[1]}, that of {where} {sum(rows)} x {parts[0].shape[1]}"
            )
        added += zip(parts, pair.change(saved.scale).split(rows), strict=True)
    for part, change in added:
        part.copy_(part.float() + change.to(part.device))
    about = {**(net.config.get("unveil") or {}), **saved.about}
    net.config = {**net.config, **({"unveil": about} if about else {})}
