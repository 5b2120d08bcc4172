"""From a folder or a hub id to a model and its tokenizer, and back."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from . import adapter as adapters
from . import families
from .attention import FULL, Attention
from .codecs.text import Text
from .denoiser import Denoiser
from .families import Family, Piece
from .families.llama import describe
from .folder import exchange, opened, read_config, recover
from .nn.grow import bare
from .nn.shift import Shifted
from .nn.transformer import Transformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$")
SHARD = 5_000_000_000  # bytes in one file, as the hub likes them


def load_model(
    path: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    mask_id: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    raw: bool = False,
) -> Denoiser:
    """A checkpoint as a denoiser, in eval mode.

    `path` is a folder, the name of a built-in model or a hub id. A diffusion checkpoint that predicts the next token
    comes wrapped so that logits at i speak of token i; `raw` gives the bare network. An autoregressive parent comes
    bare. `adapter` is the folder of a LoRA adapter to be merged into it; the folder of an adapter by itself stands for
    the base that it names, merged with it. `mask_id` overrides the checkpoint's; given for a checkpoint that knows of
    none, it says that these are the weights of a denoiser with full attention.
    `dtype` is a torch type, its name, or "auto" for the checkpoint's own; None means float32 on a CPU, else "auto".

    Raises ValueError when it is no checkpoint, its family is unknown, or a tensor is missing, too many, or mis-shaped;
    and when an adapter is of another base.
    """
    folder, beside = adapters.placed(path, adapter)
    config = read_config(folder)
    with opened(folder) as tensors:
        family = families.find(config, tensors, str(path))
        config = counted(family, config, tensors)
        kind = numbers(dtype, config, tensors, torch.device(device))
        model = skeleton(family, config, kind, device)
        pour(model, family, tensors)
        if beside is not None:
            adapters.merge(model, family, adapters.read(beside), adapters.fingerprint(tensors), str(folder))
            config = model.config
    return dressed(model, family, config, mask_id, raw)


def load(
    path: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    mask_id: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    raw: bool = False,
) -> tuple[Denoiser, Text]:
    """A checkpoint and its tokenizer; see `load_model`.

    Raises ValueError also when the tokenizer is missing or has more tokens than the model has rows.
    """
    text = Text.load(adapters.placed(path, adapter)[0])
    model = load_model(path, adapter=adapter, mask_id=mask_id, dtype=dtype, device=device, raw=raw)
    agree(bare(model), text, f"{path}")
    model.bos_id = bare(model).bos_id = text.start_id
    model.eos_id = bare(model).eos_id = text.eos_id
    return model, text


def beside(model: Denoiser, path: str | os.PathLike[str], adapter: str | os.PathLike[str]) -> Denoiser:
    """`model`, which came from `path`, with an adapter merged: a second model that shares all weights left as they are.

    Raises ValueError, as `load_model` does, when the adapter is of another base.
    """
    folder, place = adapters.placed(path, adapter)
    assert place is not None
    saved = adapters.read(place)
    with opened(folder) as tensors:
        family = families.find(read_config(folder), tensors, str(path))
        own = adapters.changed(bare(model), family, saved)
        shared = {id(weights): weights for weights in (*model.parameters(), *model.buffers()) if id(weights) not in own}
        found = deepcopy(model, shared)
        adapters.merge(bare(found), family, saved, adapters.fingerprint(tensors), str(folder))
    return found


def fresh(config: Mapping[str, Any], *, seed: int = 0, raw: bool = False) -> Denoiser:
    """A network with random weights in the shape that a config.json describes, float32 on the CPU, in eval mode."""
    family = families.find(dict(config))
    model = skeleton(family, dict(config), torch.float32, "cpu")
    model.initialise(torch.Generator().manual_seed(seed))
    return dressed(model, family, dict(config), None, raw)


# Building


@dataclass(frozen=True)
class Lacks:
    """Turns a field missing from a config into one clear sentence."""

    family: str

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            raise ValueError(f"config.json lacks {error.args[0]!r}, which the family {self.family} needs") from error


def skeleton(family: Family, config: dict, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """The network with memory and no values yet."""
    with Lacks(family.name):
        shape = family.shape(config)
    with torch.device("meta"):
        model = Transformer(shape)
    for p in model.parameters():
        if p.requires_grad:  # a router's bias keeps its precision
            p.data = p.data.to(dtype)
    model = model.to_empty(device=device)
    model.tie()
    model.family, model.config = family.name, config
    return model.eval()


def counted(family: Family, config: dict, tensors: Mapping[str, Any]) -> dict:
    """The config with the vocabulary that the tensors have, where the family's configs are known to differ."""
    if family.counted not in tensors:
        return config
    return {**config, "vocab_size": tensors[family.counted].get_slice(family.counted).get_shape()[0]}


def numbers(
    dtype: torch.dtype | str | None, config: dict, tensors: Mapping[str, Any], device: torch.device
) -> torch.dtype:
    """The number type to load in."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None and device.type == "cpu":
        return torch.float32
    name = dtype
    if dtype in (None, "auto"):
        name = config.get("dtype") or config.get("torch_dtype")
        if name is None:
            first = next(iter(tensors), None)
            return torch.float32 if first is None else tensors[first].get_tensor(first).dtype
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; there are: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


@torch.no_grad()
def pour(model: Transformer, family: Family, tensors: Mapping[str, Any]) -> None:
    """Every tensor of the checkpoint into the network, one at a time, with nothing missing and nothing left over."""
    pieces = families.layout(family, model)
    ours = dict(model.named_parameters())
    short = bool(family.prefix) and not any(name.startswith(family.prefix) for name in tensors)
    missing = dict(pieces)
    for stored, handle in tensors.items():
        name = family.prefix + stored if short and family.prefix + stored in pieces else stored
        if name not in pieces:
            if not (BUFFERS.search(name) or (name == family.head and model.s.tied)):
                size = tuple(handle.get_slice(stored).get_shape())
                raise ValueError(f"the tensor {stored} of shape {size} is unknown to the family {family.name}")
            continue
        piece = missing.pop(name)
        size = tuple(handle.get_slice(stored).get_shape())
        if size != piece.size(ours):
            raise ValueError(f"{stored} has the shape {size}, but config.json asks for {piece.size(ours)}")
        piece.put(ours, read_tensor(handle, stored))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        name, piece = next(iter(missing.items()))
        raise ValueError(f"the checkpoint lacks the tensor {name} of shape {piece.size(ours)}{more}")
    if model.s.tied and family.head in tensors:  # a copy may lie in the file, a head of its own may not
        copy = read_tensor(tensors[family.head], family.head).to(model.embed.weight)
        if not torch.equal(copy, model.embed.weight):
            raise ValueError(f"{family.head} is not the embedding, though config.json ties them: untie them there")


def read_tensor(handle: Any, name: str) -> Tensor:
    tensor = handle.get_tensor(name)
    if not tensor.is_floating_point():
        raise ValueError(f"{name} holds {tensor.dtype}: quantised weights are not supported")
    return tensor


def dressed(model: Transformer, family: Family, config: dict, mask_id: int | None, raw: bool) -> Denoiser:
    """With its mask, its attention and, where logits come one position early, its shift."""
    ours = config.get("unveil") or {}
    attention = family.attention(config)
    if "attention" in ours:
        attention = Attention(ours["attention"], ours.get("block"))
    elif attention.kind == "causal" and mask_id is not None:
        attention = FULL  # a mask token makes sense in a model that looks both ways, under whatever family's names
    mask_id = ours.get("mask_id", model.s.mask_id) if mask_id is None else mask_id
    if not -1 <= mask_id < model.s.vocab:
        raise ValueError(f"the mask token {mask_id} is outside of the vocabulary of {model.s.vocab}: give mask_id")
    if mask_id < 0 and attention.kind != "causal" and not raw:
        raise ValueError(f"which token is the mask is not known for this {family.name}: give mask_id")
    model.s = replace(model.s, mask_id=mask_id)
    model.mask_id, model.attention = mask_id, attention
    return Shifted(model) if ours.get("shift", family.shifted) and not raw else model


def agree(net: Transformer, text: Text, where: str) -> None:
    """Refuse a tokenizer whose tokens have no row in the embedding."""
    if text.vocab > net.s.vocab:
        raise ValueError(
            f"{where}: vocabulary and tokenizer disagree: the tokenizer has {text.vocab} tokens, "
            f"the model {net.s.vocab} rows"
        )


# Saving


def save(
    model: Denoiser,
    folder: str | os.PathLike[str],
    text: Text | None = None,
    *,
    unveil: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model in its parent's Hugging Face layout, with what is ours in the config's "unveil" object.

    All is written beside `folder` and renamed at the end: a failure leaves what was there before. `unveil` adds to the
    object (recipe, tokens_seen); attention, block, shift and mask_id come from the model. Of a network that carries an
    adapter only that is written, in peft's layout.

    Raises ValueError when `folder` holds something and `overwrite` is not set, or holds something that is no
    checkpoint; OSError when it cannot be written.
    """
    net = bare(model)
    folder = Path(folder).expanduser().resolve()
    family = families.named(net.family or "llama")
    recover(folder)
    refuse_existing(folder, overwrite)
    if text is not None:
        agree(net, text, str(folder))
    config = new_config(model, net, family, text, unveil or {})
    part = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        if text is not None:
            text.save(part)
        if net.adapter is not None:
            adapters.write(net, part, unveil or {})
        else:
            (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            write_weights(families.layout(family, net), dict(net.named_parameters()), part)
        exchange(part, folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be saved, and what was there before is untouched: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def refuse_existing(folder: Path, overwrite: bool) -> None:
    if folder.is_file():
        raise ValueError(f"{folder} is a file: expected a folder to save in")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{folder} exists and is not empty: choose another folder, or allow it to be overwritten")
    if not any((folder / name).is_file() for name in ("config.json", adapters.CONFIG)):
        raise ValueError(f"{folder} holds something that is not a checkpoint: it will not be overwritten")


def new_config(model: Denoiser, net: Transformer, family: Family, text: Text | None, extra: Mapping[str, Any]) -> dict:
    """The parent's config with what has changed, and our object."""
    config = dict(net.config) if net.config else describe(net.s)
    config.update(dict.fromkeys((key for key in family.rows if key in config), net.s.vocab))
    config["dtype" if "dtype" in config else "torch_dtype"] = str(net.embed.weight.dtype).removeprefix("torch.")
    if text is not None:
        for key, value in (("bos_token_id", text.bos_id), ("eos_token_id", text.eos_id)):
            if value is not None:
                config.setdefault(key, value)
    about: dict[str, Any] = {"attention": model.attention.kind}
    if model.attention.block is not None:
        about["block"] = model.attention.block
    about |= {"shift": model.shifted, "mask_id": model.mask_id}
    config["unveil"] = {**(config.get("unveil") or {}), **extra, **about}
    return config


def write_weights(pieces: dict[str, Piece], ours: dict[str, Tensor], folder: Path) -> None:
    """One file, or several with an index; only one file's tensors are copied at a time."""
    ours = {name: p.detach() for name, p in ours.items()}
    shards: list[dict[str, Piece]] = [{}]
    room = SHARD
    total = 0
    for name, piece in pieces.items():
        size = sum(part.numel() * part.element_size() for part in piece.parts(ours))
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD
        shards[-1][name] = piece
        room, total = room - size, total + size
    many = len(shards) > 1
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if many else "model.safetensors"
        tensors = {name: piece.get(ours).cpu() for name, piece in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shutil.copymode(folder / "config.json", folder / file)  # it would be its owner's alone
        weight_map |= dict.fromkeys(shard, file)
    if many:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
