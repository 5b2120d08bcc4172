"""`unveil train` and `unveil adapt`: a recipe, flags that override it, and a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .launch import Processes, Restarts, launched, processes
from .places import model_place, recipe_place
from .say import Json, result, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..denoiser import Denoiser
    from ..start import Start
    from ..train.ranks import Ranks
    from ..train.recipe import Recipe

Out = Annotated[str, typer.Option("--out", "-o", help="The folder of the new model, with its log and checkpoints.")]
Name = Annotated[str, typer.Option("--recipe", "-r", help="A name from unveil list recipes, or a .toml file.")]
Data = Annotated[list[str] | None, typer.Option(help="Files, folders, a hub data set, or stdlib; may be repeated.")]
Field = Annotated[str | None, typer.Option(help="The text's field in .jsonl and .parquet rows.")]
Goal = Annotated[str | None, typer.Option(help="A spec such as leader(n=8).")]
Minutes = Annotated[float | None, typer.Option(help="Stop after so many minutes; replaces the recipe's limit.")]
Tokens = Annotated[
    float | None, typer.Option(help="Stop after so many tokens, as in 5e6; replaces the recipe's limit.")
]
Updates = Annotated[int | None, typer.Option(help="Stop after so many updates; replaces the recipe's limit.")]
Rows = Annotated[int | None, typer.Option(help="Sequences an update.")]
Length = Annotated[int | None, typer.Option(help="Positions a sequence.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate at its peak.")]
Seed = Annotated[int | None, typer.Option(help="Of weights, data order and noise.")]
More = Annotated[list[str] | None, typer.Option("--set", help="Any other field, as NAME=VALUE; may be repeated.")]
Shift = Annotated[bool | None, typer.Option("--shift/--no-shift", help="Read token i at i - 1; default: as usual.")]
Resume = Annotated[bool, typer.Option(help="Continue the run in the folder.")]
Overwrite = Annotated[bool, typer.Option(help="Begin again in a folder that is not empty.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
LIMITS = ("minutes", "tokens", "steps")
WINDOWS = 48  # held-out rows that a run is scored on now and then
Shaping = Annotated[int | None, typer.Option(help="Of a network with random weights.")]


def train(
    out: Out,
    recipe: Name = "stdlib-ar",
    parent: Annotated[str | None, typer.Option(help="Continue from this checkpoint; default: random weights.")] = None,
    data: Data = None,
    field: Field = None,
    objective: Goal = None,
    minutes: Minutes = None,
    tokens: Tokens = None,
    steps: Updates = None,
    rows: Rows = None,
    length: Length = None,
    lr: Rate = None,
    seed: Seed = None,
    vocab: Annotated[int | None, typer.Option(help="Tokens of the tokenizer trained when there is no parent.")] = None,
    width: Shaping = None,
    layers: Shaping = None,
    heads: Shaping = None,
    set_: More = None,
    shift: Shift = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    nproc: Processes = 1,
    max_restarts: Restarts = 0,
    json: Json = False,
) -> None:
    """Train from random weights, or go on from a checkpoint, with any objective."""
    if launched(nproc, max_restarts):
        return
    flags = {"parent": parent, "field": field, "objective": objective, "rows": rows, "length": length, "lr": lr}
    flags |= {"minutes": minutes, "tokens": tokens, "steps": steps, "seed": seed, "shift": shift}
    flags |= {"vocab": vocab, "width": width, "layers": layers, "heads": heads}
    run(combined(recipe, flags, data, set_), out, resume, overwrite, device, json)


def adapt(
    out: Out,
    parent: Annotated[
        str, typer.Argument(help="An autoregressive checkpoint: folder, hub id, or embedded.")
    ] = "stdlib-ar",
    recipe: Name = "leader",
    data: Data = None,
    field: Field = None,
    objective: Goal = None,
    minutes: Minutes = None,
    tokens: Tokens = None,
    steps: Updates = None,
    rows: Rows = None,
    length: Length = None,
    lr: Rate = None,
    seed: Seed = None,
    set_: More = None,
    shift: Shift = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    nproc: Processes = 1,
    max_restarts: Restarts = 0,
    json: Json = False,
) -> None:
    """Turn an autoregressive checkpoint into a diffusion language model that still loads as its parent."""
    if launched(nproc, max_restarts):
        return
    flags = {"parent": parent, "field": field, "objective": objective, "rows": rows, "length": length, "lr": lr}
    flags |= {"minutes": minutes, "tokens": tokens, "steps": steps, "seed": seed, "shift": shift}
    run(combined(recipe, flags, data, set_), out, resume, overwrite, device, json)


def combined(name: str, flags: dict, data: list[str] | None, more: list[str] | None) -> Recipe:
    """The recipe with the flags put over it. A limit given as a flag replaces all limits of the recipe."""
    from ..train.recipe import Recipe

    flags["data"] = data or None
    if flags.get("shift") is not None:
        flags["shift"] = "yes" if flags["shift"] else "no"
    if any(flags.get(each) is not None for each in LIMITS):
        flags |= {each: flags.get(each) or 0 for each in LIMITS}
    for pair in more or []:
        field, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set expects NAME=VALUE, got {pair!r}")
        flags[field.strip()] = plain(value.strip())
    recipe = Recipe.read(recipe_place(name), **flags)
    if recipe.parent:
        model_place(recipe.parent)
    return recipe


def plain(value: str) -> object:
    """A flag's text as TOML would read it, or as the string that it is."""
    import tomllib

    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def run(
    recipe: Recipe,
    out: str,
    resume: bool,
    overwrite: bool,
    device: str,
    json: bool,
    judged: Callable[[Start], Callable[[Denoiser], dict[str, float]]] | None = None,
) -> None:
    """Train, and say what came of it. `judged` gives what is measured on held-out data beside the bound."""
    with processes(device) as ranks:
        together(recipe, out, resume, overwrite, ranks, json, judged)


def together(
    recipe: Recipe,
    out: str,
    resume: bool,
    overwrite: bool,
    ranks: Ranks,
    json: bool,
    judged: Callable[[Start], Callable[[Denoiser], dict[str, float]]] | None,
) -> None:
    """The same in each of the processes, of which the first speaks."""
    from pathlib import Path

    from rich.console import Console

    from ..start import start
    from ..train import train as learn
    from ..train.checkpoint import claim

    ranks.check(recipe)
    resume, overwrite = ranks.way(Path(out), resume, overwrite)
    claim(Path(out), resume, False, ranks) if resume or not overwrite else None  # before minutes are spent on the data
    console = Console(stderr=True, quiet=not ranks.leads or (json and not sys.stderr.isatty()))
    console.print(f"reading {', '.join(recipe.data)}", markup=False, highlight=False)
    made = ranks.in_turn(lambda: start(recipe))
    recipe = made.recipe
    if made.frozen is not None:
        made.frozen.to(ranks.device)
    corpus, count = made.corpus, sum(p.numel() for p in made.model.parameters())
    console.print(
        f"{count:,} parameters, {corpus.train.tokens:,} tokens to train on, {corpus.held_out.tokens:,} held out",
        highlight=False,
    )
    more = judged(made) if judged else None
    found = learn(
        made.model,
        made.objective,
        corpus.train,
        recipe,
        out=out,
        text=made.text,
        resume=resume,
        overwrite=overwrite,
        evaluate=lambda model: score(model, made, recipe.length) | (more(model) if more else {}),
        sample=lambda model: sample(model, made),
        console=console,
        unveil=origin(recipe),
        ranks=ranks,
    )
    if not ranks.leads:
        return
    last = {name: value for name, value in found.metrics.items() if name != "parts"}
    lines = table([("model", found.path), *((name, shown(value)) for name, value in last.items())])
    result({"model": found.path, "parameters": count, **last}, json, [*lines, "", f"try: unveil info {found.path}"])


def origin(recipe: Recipe) -> dict[str, object]:
    """What a checkpoint says of how it was made, so that `unveil score` finds the text that it has not seen."""
    told: dict[str, object] = {"data": list(recipe.data), "held_out": recipe.held_out, "close": recipe.close}
    told |= {"chat": True} if recipe.chat else {}
    return told | ({"parent": recipe.parent} if recipe.parent else {})


def shown(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def score(model: Denoiser, made: Start, length: int) -> dict[str, float]:
    """Held-out nats per token: the model's own figure, and that of its autoregressive mode where it has one."""
    from ..evaluate.likelihood import score as measure
    from ..train.machine import moved

    side = made.corpus.held_out
    length = min(length, side.tokens)  # of little text little is held out
    if length < 2:
        return {}
    batch = moved(side.windows(length, WINDOWS), next(model.parameters()).device)
    own = measure(model, batch, draws=2)
    found = {"held_out": own.nats} | ({"held_out_stderr": own.stderr} if len(batch.tokens) > 1 else {})
    if model.attention.kind == "leader":
        found["held_out_ar"] = measure(model, batch, mode="exact").nats
    return found


def sample(model: Denoiser, made: Start) -> str:
    """A text that the model begins itself."""
    import torch

    from ..sample import generate

    empty = torch.zeros(1, 0, dtype=torch.long, device=next(model.parameters()).device)
    look = model.attention
    cache = look.cache
    return made.text.decode(generate(model, empty, 64, "confidence", cache=cache, block=look.block, seed=0)[0])
