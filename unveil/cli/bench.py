"""`unveil bench`: which decoder and which cache are best for a model and a task, measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .places import model_place, vacant, whole
from .say import Json, clean, progress, result
from .write import Compiled

if TYPE_CHECKING:
    from ..evaluate.advice import Advice
    from ..evaluate.bench import Bench, Measured
    from ..evaluate.intervals import Interval

Place = Annotated[str, typer.Argument(help="A folder, a hub id or an embedded model.")]
Job = Annotated[str, typer.Option("--task", help="A spec such as countdown(largest=9).")]
Decoders = Annotated[
    list[str] | None, typer.Option(help="Specs with ; between them, or the option repeated; default: all there are.")
]
Caches = Annotated[list[str] | None, typer.Option(help="Likewise; default: all that the model allows.")]
Lead = Annotated[str | None, typer.Option(help="A spec of what changes predictions, for every way to decode.")]
Block = Annotated[int | None, typer.Option(help="Positions per block; default: the model's own, or one block.")]
Steps = Annotated[int | None, typer.Option(help="Predictions allowed per block; default: as each decoder likes.")]
Count = Annotated[int, typer.Option(help="Problems in a draw of the test set.")]
Seeds = Annotated[int, typer.Option(help="Draws of the test set.")]
Batch = Annotated[int, typer.Option(help="Problems decoded together for quality; speed is always one by one.")]
Timed = Annotated[int, typer.Option(help="Problems that are timed.")]
Runs = Annotated[int, typer.Option(help="Times they are timed; the median counts.")]
Parent = Annotated[str | None, typer.Option("--ar", help="A next-token model to decode token by token beside it.")]
Out = Annotated[str | None, typer.Option("--out", "-o", help="A folder for bench.json, bench.html and pareto.png.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
FILE = "bench.json"
COLUMNS = ("way to decode", "quality", "95 %", "- vanilla", "forwards", "tok/fwd", "tok/s", "speed", "MB")
WIDE, LESS = 120, ("95 %", "tok/fwd", "MB")  # characters, and what is left out of a narrower table


def bench(
    model: Place = "tasks-dlm",
    task: Job = "sudoku",
    decoders: Decoders = None,
    caches: Caches = None,
    guide: Lead = None,
    block: Block = None,
    steps: Steps = None,
    count: Count = 200,
    seeds: Seeds = 3,
    batch: Batch = 16,
    timed: Timed = 8,
    runs: Runs = 3,
    ar: Parent = None,
    out: Out = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what an earlier bench left in --out.")] = False,
    device: Device = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ...; default: float32 on a CPU.")] = None,
    compile: Compiled = False,
    json: Json = False,
) -> None:
    """Quality, forwards, speed and memory of decoders and caches on a task, beside plain ways, and which to use."""
    from .. import __version__, hub, spec
    from ..evaluate.advice import advice
    from ..evaluate.bench import Bench, arms, draws, machine, measure, token_by_token
    from ..evaluate.problems import Subject
    from ..evaluate.unfinished import FILE as KEPT
    from ..evaluate.unfinished import Unfinished, files
    from ..folder import locate
    from ..nn.fixed import fix
    from ..tasks import to_be_written

    chosen = {"decoders": listed(decoders), "caches": listed(caches)}
    for kind, given in chosen.items():
        for each in given:
            spec.build(kind, each)
    asked = to_be_written(spec.build("tasks", task), task)
    sets, problems = draws(asked, count, seeds)
    place = None if out is None else vacant(out, FILE, "bench", overwrite)
    loaded = {name: files(locate(model_place(name))) for name in (model, ar) if name}
    asked_for = {"model": model, "task": task, "count": count, "seeds": seeds, "guide": guide, "block": block}
    asked_for |= {"steps": steps, "timed": timed, "runs": runs, "ar": ar, "device": device, "dtype": dtype}
    asked_for |= {"compile": True} if compile else {}
    asked_for |= {"version": __version__, "checkpoints": loaded}
    kept = Unfinished(place and place / KEPT, asked_for)
    if resumed := kept.resume(discard=overwrite):
        print(f"going on with {resumed} ways to decode that an earlier run began", file=sys.stderr)
    network, text = hub.load(model_place(model), device=device, dtype=dtype)
    subject, parent = Subject(network.eval(), text, asked), None
    if ar is not None:
        follower, own = hub.load(model_place(ar), device=device, dtype=dtype)
        parent = Subject(token_by_token(follower, own).to(device).eval(), own, asked)
    for each in (subject, parent):
        if compile and each is not None:
            fix(each.model)
    given = [chosen[kind] or spec.names(kind) for kind in chosen]
    options = {"guide": guide, "block": block, "steps": steps, "parent": parent}
    ways, skipped = arms(subject, sets[0], given[0], given[1], **options)
    counts = {"batch": batch, "timed": timed, "runs": runs}
    try:
        print(f"measuring {len(ways)} ways to decode", file=sys.stderr)
        measured = measure(ways, sets, **counts, report=progress(5), kept=kept)
    except KeyboardInterrupt:
        rest = f"what is measured is in {place}; the same command goes on" if place else "nothing is kept without --out"
        print(f"stopped: {rest}", file=sys.stderr)
        raise
    found = Bench(measured, skipped, problems)
    told = advice(found)
    facts = {"model": model, "task": task, "problems": f"{seeds} draws of {count}", "different problems": found.sample}
    facts |= {"guide": guide, "block": found.vanilla.arm.setting.block, "steps": steps, "autoregressive model": ar}
    facts |= {"batch": batch, "timed problems": min(timed, count), "runs": runs, "device": device, "compiled": compile}
    facts |= {"dtype": str(next(network.parameters()).dtype).removeprefix("torch."), **machine()}
    about = {"advice": told.sentence, "best": told.best and told.best.name, **facts, **plain(found)}
    if place is not None:
        left = write(place, found, told, facts, about)
        about["files"] = left
    if json:
        result(about, True)
        return
    show(found, told)
    if place is not None:
        print(f"In {place}: {', '.join(about['files'])}")


def listed(given: Sequence[str] | None) -> list[str]:
    """Specs from a repeated option, each of them one or several with semicolons between them."""
    return [each.strip() for many in given or () for each in many.split(";") if each.strip()]


def write(place: Path, found: Bench, told: Advice, facts: dict, about: dict) -> list[str]:
    """All files of the results; their names."""
    import json

    from ..watch.bench_page import page

    data = json.dumps(clean(about), indent=1, ensure_ascii=False) + "\n"
    return whole(place, {FILE: data, "bench.html": page(found, told, facts), **picture(found, told)})


def picture(found: Bench, told: Advice) -> dict[str, bytes]:
    """The Pareto plot by its file's name, where matplotlib is installed."""
    from ..watch.pareto import png

    try:
        return {"pareto.png": png(found, told.best, told.sentence)}
    except ModuleNotFoundError:
        print("no pareto.png: matplotlib is not installed (pip install 'unveil[plot]')", file=sys.stderr)
        return {}


def plain(found: Bench) -> dict:
    """All figures for machines."""
    fast, few = found.front(lambda one: one.speed), found.front(lambda one: -one.calls)
    return {
        "measured": [
            {
                "name": one.name,
                "role": one.arm.role,
                "decoder": one.arm.setting.decoder,
                **one.arm.setting.options,
                "quality": spread(found.quality(one)),
                "quality_per_draw": one.scores.mean(1).tolist(),
                "difference": spread(found.difference(one)),
                "forwards": one.calls,
                "tokens": float(one.tokens.mean()),
                "tokens_per_forward": one.parallel,
                "tokens_per_second": one.speed,
                "tokens_per_second_runs": one.speeds,
                "over_vanilla": found.gain(one),
                "memory_bytes": one.memory,
                "front_of_speed": any(one is each for each in fast),
                "front_of_forwards": any(one is each for each in few),
            }
            for one in found.measured
        ],
        "skipped": [{"decoder": one.decoder, "cache": one.cache, "reason": one.reason} for one in found.skipped],
    }


def spread(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": float(found.low), "high": float(found.high)}


def show(found: Bench, told: Advice) -> None:
    """The table, what was skipped, and the advice."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    front = found.front(lambda one: one.speed)
    kept = [i for i, name in enumerate(COLUMNS) if console.width >= WIDE or name not in LESS]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i in kept:
        table.add_column(COLUMNS[i], justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for one in found.measured:
        best = one is told.best
        style = "bold green" if best else "bold" if any(one is each for each in front) else ""
        cells = line(found, one)
        table.add_row(*(cells[i] for i in kept), style=style)
    console.print(table)
    for one in found.skipped:
        console.print(f"skipped {one.decoder} with {one.cache}: {one.reason}", style="dim", markup=False)
    console.print(told.sentence, style="bold", markup=False, highlight=False)


def line(found: Bench, one: Measured) -> list[str]:
    """A row of the table."""
    quality, less = found.quality(one), found.difference(one)
    return [
        one.name,
        f"{100 * quality.mean:.1f}",
        f"{100 * quality.low:.1f}-{100 * quality.high:.1f}",
        "" if one is found.vanilla else f"{100 * less.mean:+.1f}",
        f"{one.calls:.1f}",
        f"{one.parallel:.2f}",
        f"{one.speed:.1f}",
        f"{found.gain(one):.2f}x",
        f"{one.memory / 1e6:.1f}",
    ]
