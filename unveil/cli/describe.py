"""`unveil list`, `unveil info` and `unveil export`: what there is, what a checkpoint is, and a copy of it."""

from __future__ import annotations

from typing import Annotated

import typer

from .places import KINDS, described, model_place, spec_options
from .say import Json, result, table

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


def info(model: Place = "stdlib-dlm", json: Json = False) -> None:
    """What a checkpoint is: its family, shape, attention, mask and how it was trained. Reads no weights."""
    from dataclasses import asdict
    from math import prod

    from .. import families
    from ..codecs.text import Text
    from ..folder import locate, opened, read_config

    folder = locate(model_place(model))
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
        *((name.replace("_", " "), f"{v:,}" if type(v) is int else v) for name, v in about["trained"].items()),
        ("files", f"{about['bytes'] / 1e6:.1f} MB"),
    ]
    result(about, json, table(rows))


def export(
    model: Place,
    folder: Annotated[str, typer.Argument(help="Where to save.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as it is.")] = "auto",
    parent: Annotated[
        bool, typer.Option("--parent", help="Leave out what is ours in config.json: the plain parent.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a checkpoint that is there.")] = False,
    json: Json = False,
) -> None:
    """Save a checkpoint anew in its parent's Hugging Face layout, as transformers and others load it."""
    import json as plain
    import os

    from .. import hub

    network, text = hub.load(model_place(model), dtype=dtype)
    saved = hub.save(network, folder, text, overwrite=overwrite)
    if parent:
        config = plain.loads((saved / "config.json").read_text(encoding="utf-8"))
        del config["unveil"]
        draft = saved / ".config.json"
        draft.write_text(plain.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, saved / "config.json")
    size = sum(path.stat().st_size for path in saved.iterdir() if path.is_file())
    result({"model": saved, "bytes": size}, json, [f"{saved}  {size / 1e6:.1f} MB"])
