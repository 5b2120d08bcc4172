"""One family per file: how its published config and tensor names read in our terms."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from ..attention import Attention
from ..nn.transformer import Shape, Transformer

Names = dict[str, str | tuple[str, ...]]
"""Their module to ours. `#` stands for a layer number, a second `#` for an expert; `.T` for a weight stored (in, out);
`[i]` for the i-th matrix of an expert; `.P` for a parameter, not a module; a tuple for several of ours that they keep
joined along the output, with `.H` head by head; `.R` for heads whose turned dimensions lie in pairs side by side, where
ours are halves.
"""


@dataclass(frozen=True)
class Family:
    """What a published checkpoint's config and names mean."""

    name: str
    shape: Callable[[dict], Shape]
    names: Names
    prefix: str = ""  # what base checkpoints, saved without their head, leave out of every name
    attention: Callable[[dict], Attention] = lambda config: Attention("causal")
    shifted: bool = False  # a published diffusion model that predicts the next token
    rows: tuple[str, ...] = ("vocab_size",)  # config fields that hold the number of embedding rows
    head: str = "lm_head.weight"  # may be missing or repeated where it is tied
    counted: str = ""  # the tensor whose rows are the vocabulary, where the config is not to be trusted


@dataclass(frozen=True)
class Piece:
    """Where the contents of one of their tensors stand: in these parameters, joined along rows."""

    ours: tuple[str, ...]
    index: int | None = None
    transposed: bool = False
    heads: int = 1  # groups of rows in each, which take turns
    pairs: tuple[int, int] | None = None  # of each so many rows the first so many are pairs: dimensions of a head

    def parts(self, ours: Mapping[str, Tensor]) -> list[Tensor]:
        """Views into our parameters, the way we keep them."""
        return [ours[name] if self.index is None else ours[name][self.index] for name in self.ours]

    def size(self, ours: Mapping[str, Tensor]) -> tuple[int, ...]:
        """The size their tensor must have."""
        parts = self.parts(ours)
        size = (sum(len(part) for part in parts), *parts[0].shape[1:])
        return size[::-1] if self.transposed else size

    def put(self, ours: Mapping[str, Tensor], theirs: Tensor) -> None:
        """Copy their tensor into our parameters, whatever its type and device."""
        parts = self.parts(ours)
        rows = halves(theirs, *self.pairs) if self.pairs else theirs.T if self.transposed else theirs
        rows = rows.unflatten(0, (self.heads, -1))
        for part, value in zip(parts, rows.split([len(part) // self.heads for part in parts], dim=1), strict=True):
            part.copy_(value.flatten(0, 1))

    def get(self, ours: Mapping[str, Tensor]) -> Tensor:
        """Their tensor."""
        parts = self.parts(ours)
        rows = parts[0]
        if len(parts) > 1:
            rows = torch.cat([part.unflatten(0, (self.heads, -1)) for part in parts], 1).flatten(0, 1)
        rows = side_by_side(rows, *self.pairs) if self.pairs else rows
        return (rows.T if self.transposed else rows).contiguous()


def halves(rows: Tensor, size: int, turned: int) -> Tensor:
    """Of every `size` rows the first `turned`, pair by pair, as all firsts of pairs and then all seconds."""
    heads = rows.unflatten(0, (-1, size))
    first = heads[:, :turned].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([first, heads[:, turned:]], 1).flatten(0, 1)


def side_by_side(rows: Tensor, size: int, turned: int) -> Tensor:
    """What `halves` undoes."""
    heads = rows.unflatten(0, (-1, size))
    first = heads[:, :turned].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat([first, heads[:, turned:]], 1).flatten(0, 1)


def layout(family: Family, model: Transformer) -> dict[str, Piece]:
    """Every tensor that a checkpoint of this network has under the family's names."""
    ours = dict(model.named_parameters())  # a tied head counts once, as the embedding
    found: dict[str, Piece] = {}
    layers = range(model.s.layers)
    experts = range(model.s.mixture.experts if model.s.mixture else 0)
    for theirs, pattern in family.names.items():
        patterns = (pattern,) if isinstance(pattern, str) else pattern
        for numbers in itertools.product(*(layers, experts)[: theirs.count("#")]):
            names = [fill(each, numbers) for each in patterns]
            turned, heads = names[0].endswith(".T"), model.s.heads if names[0].endswith(".H") else 1
            pairs = (model.s.head_size, model.s.turned or model.s.head_size) if names[0].endswith(".R") else None
            names = [re.sub(r"\.[THR]$", "", name) for name in names]
            if names[0].endswith(".P"):
                if (name := names[0].removesuffix(".P")) in ours:
                    found[fill(theirs, numbers)] = Piece((name,))
                continue
            if names[0].endswith("]"):
                whole = (names[0][:-3],)
                if whole[0] in ours:
                    found[fill(theirs, numbers) + ".weight"] = Piece(whole, int(names[0][-2]), turned)
                continue
            for leaf in ("weight", "bias"):
                full = tuple(f"{name}.{leaf}" for name in names)
                if full[0] in ours:
                    found[f"{fill(theirs, numbers)}.{leaf}"] = Piece(
                        full, None, turned and leaf == "weight", heads, pairs
                    )
    covered = {name for piece in found.values() for name in piece.ours}
    assert covered == set(ours), f"{family.name} has no names for {sorted(set(ours) - covered)[:3]}"
    return found


def fill(pattern: str, numbers: tuple[int, ...]) -> str:
    left = iter(numbers)
    return re.sub("#", lambda _: str(next(left)), pattern)


def known() -> list[str]:
    """The names of all families: this folder is the list."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def named(name: str) -> Family:
    """A family by its name."""
    if name not in known():
        raise ValueError(f"unknown family {name!r}; there are: {', '.join(known())}")
    return import_module(f"{__name__}.{name}").FAMILY


def find(config: dict, tensors: Iterable[str] = (), where: str = "") -> Family:
    """The family of a checkpoint, by its config, its tensor names and, for DiffuLLaMA, the name of its repository."""
    if any(name.startswith("denoise_model.") for name in tensors):
        return named("diffugpt")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(f"config.json names no model_type; known families: {', '.join(known())}")
    kind = kind.lower().replace("-", "_")
    makers = " ".join(config.get("architectures") or []).lower()
    if kind in ("llada", "lladamoe", "llada_moe"):
        return named("llada_moe" if "moe" in makers + kind or "num_experts" in config else "llada")
    origin = f"{where} {config.get('_name_or_path', '')}".lower()
    if kind == "llama" and "unveil" not in config and "diffullama" in origin:
        return named("diffullama")
    return named(kind)


def mask_of(config: dict, default: int) -> int:
    """The mask token that a config names, else the one its family is known to use."""
    given = config.get("mask_token_id")
    return default if given is None else given


def only(config: dict, key: str, allowed: tuple, default: object) -> None:
    """Refuse a variant of the architecture that the backbone would compute wrongly."""
    value = config.get(key, default)
    if value not in allowed:
        choices = ", ".join(repr(each) for each in allowed)
        raise ValueError(f"config.json has {key} = {value!r}, and only {choices} is supported for this family")


def layer_types(config: dict, layers: int, every: int) -> list[str]:
    """What the config says of each layer; else every `every`-th sees everything and the others a window."""
    usual = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    return config.get("layer_types") or usual


def wide(kinds: Iterable[str]) -> frozenset[int]:
    """The layers that see everything, by a config's `layer_types`."""
    return frozenset(layer for layer, kind in enumerate(kinds) if kind == "full_attention")
