"""`unveil list`, `unveil info` and `unveil export`: what there is, what a checkpoint is, and a copy of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..choices import options as spec_options
from ..whole import put
from .places import KINDS, described, model_place
from .say import Json, result, table

if TYPE_CHECKING:
    from ..evaluate.check import Check

Place = Annotated[str, typer.Argument(help="A folder, a hub id or an embedded model.")]
ALL = (*KINDS, "recipes")


def list_(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(ALL)}; default: all.")] = None,
    json: Json = False,
) -> None:
    """What there is to choose from, with one line each."""
    if kind is not None and kind not in ALL:
        raise ValueError(f"no list of {kind!r}; there are: {', '.join(ALL)}")
    found = {each: described(each) for each in ALL if kind in (None, each)}
    lines = []
    for each, choices in found.items():
        lines += ([""] if lines else []) + ([each] if kind is None else [])
        wide = max(map(len, choices), default=0)
        for name, sentence in choices.items():
            lines.append(f"  {name:<{wide}}  {sentence}")
            if options := bracketed(each, name):
                lines.append(f"  {'':<{wide}}  {options}")
    result(found, json, lines)


def bracketed(kind: str, name: str) -> str:
    """The options of a spec with their defaults, as it would be written."""
    if kind not in ("decoders", "caches", "guides", "objectives", "tasks"):
        return ""
    options = ", ".join(f"{option}={default}" for option, default in spec_options(kind, name).items())
    return f"{name}({options})" if options else ""


def info(
    model: Place = "stdlib-dlm",
    check: Annotated[
        bool, typer.Option("--check", help="Load the weights too, and see whether they read tokens where config says.")
    ] = False,
    json: Json = False,
) -> None:
    """What a checkpoint is: its family, shape, attention, mask and how it was trained. Reads no weights by itself."""
    from dataclasses import asdict
    from math import prod

    from .. import families
    from ..adapter import placed, read
    from ..codecs.text import Text
    from ..folder import opened, read_config

    folder, adapter = placed(model_place(model))
    config = read_config(folder)
    with opened(folder) as tensors:
        family = families.find(config, tensors, model)
        sizes = [prod(handle.get_slice(name).get_shape()) for name, handle in tensors.items()]
    shape = {name: value for name, value in asdict(family.shape(config)).items() if value is not None}
    ours = config.get("unveil") or {}
    attention = ours.get("attention") or family.attention(config).kind
    text = Text.load(folder)
    files = [path for path in folder.iterdir() if path.is_file()]
    about = {
        "model": str(folder),
        "family": family.name,
        "parameters": sum(sizes),
        "attention": attention,
        "block": ours.get("block"),
        "shift": ours.get("shift", family.shifted),
        "mask_id": ours.get("mask_id", shape["mask_id"]),
        "vocabulary": text.vocab,
        "context": shape["context"],
        "trained": {k: v for k, v in ours.items() if k not in ("attention", "block", "shift", "mask_id")},
        "shape": {name: sorted(v) if isinstance(v, frozenset) else v for name, v in shape.items()},
        "bytes": sum(path.stat().st_size for path in files),
    }
    rows = [
        ("model", about["model"]),
        ("family", about["family"]),
        ("parameters", f"{about['parameters']:,}"),
        ("attention", attention + (f", block {about['block']}" if about["block"] else "")),
        ("shift", "token i is read at i - 1" if about["shift"] else "token i is read at i"),
        ("mask token", about["mask_id"] if about["mask_id"] >= 0 else "none: an autoregressive parent"),
        ("vocabulary", f"{text.vocab:,} tokens, {shape['vocab']:,} rows"),
        ("context", f"{about['context']:,} positions"),
        (
            "shape",
            f"{shape['layers']} layers, width {shape['width']}, {shape['heads']} heads, hidden {shape['hidden']}",
        ),
        *((name.replace("_", " "), told(value)) for name, value in about["trained"].items()),
        ("files", f"{about['bytes'] / 1e6:.1f} MB"),
    ]
    if adapter is not None:
        saved = read(adapter)
        count = sum(part.numel() for pair in saved.pairs.values() for part in pair)
        about["adapter"] = {"folder": str(adapter), "parameters": count, "layers": len(saved.pairs), **saved.about}
        rows.append(("adapter", f"{adapter}: {count:,} parameters beside {len(saved.pairs)} layers"))
        rows += [(f"adapter's {name.replace('_', ' ')}", told(value)) for name, value in saved.about.items()]
    found = checked(model) if check else None
    if found:
        about["check"] = {**asdict(found), "agrees": found.agrees}
        rows.append(("check", found.sentence))
    result(about, json, table(rows))
    if found and found.agrees is False:
        raise ValueError(f"{model}: {found.sentence}")


def checked(model: str) -> Check:
    """What the weights themselves show."""
    from .. import hub
    from ..evaluate.check import check

    return check(*hub.load(model))


def told(value: object) -> object:
    """A value of the config as people write it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else value


def export(
    model: Place,
    folder: Annotated[str, typer.Argument(help="Where to save.")],
    adapter: Annotated[str | None, typer.Option(help="The folder of a LoRA adapter to merge into it.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as it is.")] = "auto",
    parent: Annotated[
        bool, typer.Option("--parent", help="Leave out what is ours in config.json: the plain parent.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a checkpoint that is there.")] = False,
    json: Json = False,
) -> None:
    """Save a checkpoint anew, merged with an adapter if one is given, in the Hugging Face layout of its parent."""
    import json as plain

    from .. import hub

    network, text = hub.load(model_place(model), adapter=adapter, dtype=dtype)
    saved = hub.save(network, folder, text, overwrite=overwrite)
    if parent:
        config = plain.loads((saved / "config.json").read_text(encoding="utf-8"))
        del config["unveil"]
        put(saved / "config.json", plain.dumps(config, indent=2) + "\n")
    size = sum(path.stat().st_size for path in saved.iterdir() if path.is_file())
    result({"model": saved, "bytes": size}, json, [f"{saved}  {size / 1e6:.1f} MB"])
