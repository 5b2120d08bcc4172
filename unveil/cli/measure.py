"""`unveil score`: how well a model predicts text, exactly or by a bound, and which of the two."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from .places import model_place
from .say import Json, result, table

if TYPE_CHECKING:
    from ..evaluate.likelihood import Score

Place = Annotated[str, typer.Argument(help="A folder, a hub id or an embedded model.")]
Data = Annotated[list[str] | None, typer.Option(help="As for train; default: what it was trained on, held-out side.")]
Field = Annotated[str, typer.Option(help="The text's field in .jsonl and .parquet rows.")]
Held = Annotated[bool | None, typer.Option("--held-out/--all", help="Only what training holds out, or all of --data.")]
Mode = Annotated[str, typer.Option(help="auto, exact or bound.")]
Block = Annotated[int | None, typer.Option(help="Positions per block of the bound; 0: whole documents.")]
Windows = Annotated[int, typer.Option(help="At most so many rows, evenly spread over the text.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]


def score(
    model: Place = "stdlib-dlm",
    data: Data = None,
    field: Field = "text",
    held_out: Held = None,
    mode: Mode = "auto",
    block: Block = None,
    length: Annotated[int, typer.Option(help="Positions a row.")] = 256,
    windows: Windows = 200,
    draws: Annotated[int, typer.Option(help="Noise draws per row of a bound.")] = 8,
    seed: Annotated[int, typer.Option(help="Keys the noise.")] = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Nats per token and perplexity on text: exact, or an upper bound, and it says which."""
    from .. import hub
    from ..data import converse, prepare
    from ..evaluate.likelihood import score as measure
    from ..nn.grow import bare
    from ..train.machine import moved

    if mode not in ("auto", "exact", "bound"):
        raise ValueError(f"no mode called {mode!r}; there are: auto, exact, bound")
    network, text = hub.load(model_place(model), device=device)
    ours = bare(network).config.get("unveil") or {}
    sources, held, sides = wanted(ours, data, held_out)
    named = ", ".join(sources)
    if ours.get("chat") and sources == trained(ours):
        corpus = converse(sources, text, **sides)
    else:
        corpus = prepare(sources, text, field=field, close=ours.get("close", True), **sides)
    side = corpus.held_out if held else corpus.train
    if side.tokens < length:
        raise ValueError(f"{named} has {side.tokens} tokens here, less than one row of {length}: lower --length")
    batch = moved(side.windows(length, windows), next(network.parameters()).device)
    found = measure(network, batch, mode=mode, block=block, draws=draws, seed=seed)
    about = {"model": model, "data": named, "held_out": held, **plain(found)}
    rows = shown(found)
    if network.attention.kind == "leader" and not found.exact:
        causal = measure(network, batch, mode="exact")
        about["autoregressive"] = plain(causal)
        rows += [("", ""), *shown(causal, "autoregressive mode, ")]
    where = f"{named}{', held out' if held else ''}: {len(batch.tokens)} rows of {length}"
    result(about, json, table([("model", model), ("data", where), *rows]))


def trained(ours: dict) -> list[str]:
    """What a model's config says it was trained on."""
    sources = ours.get("data", "stdlib")
    return [sources] if isinstance(sources, str) else sources


def wanted(ours: dict, data: list[str] | None, held_out: bool | None) -> tuple[list[str], bool, dict]:
    """Which text is measured on, whether only what training held out of it, and how that is told apart.

    Without --data it is what the model was trained on, the held-out side; of other data everything.
    """
    sources = data or trained(ours)
    held = sources == trained(ours) if held_out is None else held_out
    return sources, held, {"held_out": ours.get("held_out", 0.02) if held else 0.0, "by": ours.get("split", "tokens")}


def plain(found: Score) -> dict:
    """A score for machines."""
    return {
        "kind": found.kind,
        "nats_per_token": found.nats,
        "standard_error": None if math.isnan(found.stderr) else found.stderr,
        "perplexity": found.perplexity,
        "tokens": found.tokens,
        "layout": found.layout,
    }


def shown(found: Score, before: str = "") -> list[tuple[str, object]]:
    """A score for people."""
    said = "exact" if found.exact else "an upper bound"
    error = "of one row" if math.isnan(found.stderr) else f"+- {found.stderr:.4f}"
    return [
        (f"{before}nats per token", f"{found.nats:.4f} {error}  ({said}: {found.layout})"),
        (f"{before}perplexity", f"{'' if found.exact else '<= '}{found.perplexity:.3f}"),
        (f"{before}tokens", f"{found.tokens:,}"),
    ]
