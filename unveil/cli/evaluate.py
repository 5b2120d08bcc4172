"""`unveil eval`: published tasks and ours, of one model or of two on the same items."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .places import model_place, vacant, whole
from .say import Json, clean, progress, result

if TYPE_CHECKING:
    from ..evaluate.suite import Candidate, How, Result
    from ..watch.eval_page import Evaluation

Place = Annotated[str, typer.Argument(help="A folder, a hub id or an embedded model.")]
Tasks = Annotated[list[str], typer.Option("--tasks", "-t", help="Specs with commas between them; may be repeated.")]
Folder = Annotated[str | None, typer.Option(help="Files of published tasks; without it they come from the hub.")]
Other = Annotated[str | None, typer.Option(help="A second model, asked the same items.")]
Limit = Annotated[
    int | None, typer.Option(help="At most so many items of a task; default: all, or 200 of endless ones.")
]
Mode = Annotated[str, typer.Option(help="How options and texts are weighed: auto, exact or bound.")]
Protocol = Annotated[str, typer.Option(help="exact-count, or diffullama: the 32-point grid of its paper.")]
Draws = Annotated[int, typer.Option(help="Noise draws per option of a bound.")]
Decoding = Annotated[str, typer.Option(help="A spec of how answers are written.")]
Caching = Annotated[str | None, typer.Option(help="A spec; default: the one that changes nothing.")]
Lead = Annotated[str | None, typer.Option(help="A spec of what changes predictions.")]
Block = Annotated[int | None, typer.Option(help="Positions per block; default: the model's own; 0: one block.")]
Steps = Annotated[int | None, typer.Option(help="Predictions allowed per block of an answer.")]
Seed = Annotated[int, typer.Option(help="Keys draws, and which items; 0: a file's first.")]
Samples = Annotated[int, typer.Option(help="Answers to each problem that is written; of code pass@k comes with them.")]
Code = Annotated[bool, typer.Option(help="Run what models write where a task needs it, confined.")]
Out = Annotated[
    str | None, typer.Option("--out", "-o", help="A folder for eval.json, eval.md, eval.html, items.jsonl.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
FILE = "eval.json"


def eval_(
    model: Place,
    tasks: Tasks,
    tasks_dir: Folder = None,
    compare: Other = None,
    limit: Limit = None,
    mode: Mode = "auto",
    protocol: Protocol = "exact-count",
    draws: Draws = 32,
    decoder: Decoding = "confidence",
    cache: Caching = None,
    guide: Lead = None,
    block: Block = None,
    steps: Steps = None,
    seed: Seed = 0,
    samples: Samples = 1,
    allow_code: Code = False,
    out: Out = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what an earlier evaluation left in --out.")] = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Accuracy, likelihood and written answers on tasks, with intervals, chance and paired tests."""
    from .. import __version__, hub
    from ..evaluate.bench import machine
    from ..evaluate.suite import Candidate, How, items
    from ..evaluate.unfinished import FILE as KEPT
    from ..evaluate.unfinished import Unfinished, files
    from ..evaluate.versus import lines
    from ..folder import locate
    from ..watch.eval_page import Evaluation

    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; expected at least one item")
    if compare == model:
        raise ValueError(f"{model} is compared with itself: name another model after --compare")
    how = How(mode, protocol, draws, decoder, cache, guide, block, steps, limit, seed, samples)  # pyright: ignore
    made = built(tasks, tasks_dir, allow_code)
    refuse(how)
    place = None if out is None else vacant(out, FILE, "evaluation", overwrite)
    asked = {name: items(task, how) for name, task in made.items()}
    names = [name for name in (model, compare) if name]
    facts: dict[str, object] = {"model": model, "compared with": compare, "tasks": ", ".join(made), "files": tasks_dir}
    facts |= {**vars(how), "device": device, "version": __version__}
    asked_for = {**facts, "checkpoints": {name: files(locate(model_place(name))) for name in names}}
    kept = Unfinished(place and place / KEPT, asked_for, "evaluation")
    if kept.resume(discard=overwrite):
        print("going on with an evaluation that an earlier run began", file=sys.stderr)
    candidates = [Candidate(name, *hub.load(model_place(name), device=device)) for name in names]
    check(candidates, made, asked, how)
    try:
        found = [[measured(each, name, made[name], asked[name], how, kept) for name in made] for each in candidates]
    except KeyboardInterrupt:
        rest = f"what is measured is in {place}; the same command goes on" if place else "nothing is kept without --out"
        print(f"stopped: {rest}", file=sys.stderr)
        raise
    others = found[1] if compare else None
    command = shlex.join(["unveil", *sys.argv[1:]])
    facts |= machine() | confined(made.values())
    told = Evaluation(model, compare, found[0], others, list(lines(found[0], others)), facts, command)
    about = plain(told)
    if place is not None:
        about["files"] = write(place, told, about, asked)
    if json:
        result(about, True)
        return
    show(told)
    if place is not None:
        print(f"In {place}: {', '.join(about['files'])}")


def parted(given: Sequence[str]) -> list[str]:
    """Specs with commas or semicolons between them, of which those inside of brackets part nothing."""
    found = [""]
    for letter in ",".join(given):
        deep = sum(map(found[-1].count, "([")) > sum(map(found[-1].count, ")]"))
        if letter in ",;" and not deep:
            found.append("")
        else:
            found[-1] += letter
    return [each.strip() for each in found if each.strip()]


def built(given: Sequence[str], folder: str | None, allow_code: bool) -> dict[str, Any]:
    """Tasks by how they are named, those of published files with where these are."""
    from dataclasses import replace

    from .. import spec
    from ..tasks import Published

    names = parted(given)
    if not names:
        raise ValueError(f"no task is named; there are: {', '.join(spec.names('tasks'))}")
    if len(set(names)) < len(names):
        raise ValueError(f"each task is named once, got {' '.join(names)}")
    if folder is not None and not Path(folder).expanduser().is_dir():
        raise ValueError(f"no such folder: {folder}; --tasks-dir expects one with files of published tasks")
    made = {}
    for name in names:
        task = spec.build("tasks", name)
        if getattr(task, "runs_code", False) and not allow_code:
            raise ValueError(f"{name} runs code that a model wrote: allow it with --allow-code, or leave the task out")
        made[name] = replace(task, data=folder) if isinstance(task, Published) and not task.data and folder else task
    return made


def confined(tasks: Iterable[object]) -> dict[str, object]:
    """What held the programs that were run: guards of the sandbox that the kernel granted, and those that it did not.
    Nothing where none were run."""
    from ..sandbox import guards

    if not any(getattr(task, "runs_code", False) for task in tasks):
        return {}
    found = guards()
    held, missing = (", ".join(name for name, on in found.items() if on is wanted) for wanted in (True, False))
    return {"sandbox guards": held or "none", "sandbox guards missing": missing or None}


def refuse(how: How) -> None:
    """ValueError for what no model can be asked, before any is loaded."""
    from .. import spec
    from ..evaluate.conditional import PROTOCOLS

    for name, given, known in (("mode", how.mode, ("auto", "exact", "bound")), ("protocol", how.protocol, PROTOCOLS)):
        if given not in known:
            raise ValueError(f"no {name} called {given!r}; there are: {', '.join(known)}")
    if how.samples < 1:
        raise ValueError(f"samples is {how.samples}; expected at least one answer to each problem")
    if how.samples > 1 and not spec.build("decoders", how.decoder).temperature:
        raise ValueError(
            f"{how.samples} answers at temperature 0 are one and the same: give --decoder "
            "'confidence(temperature=0.8)' or another with a temperature"
        )
    if how.draws < 1:
        raise ValueError(f"draws is {how.draws}; expected at least one")
    for kind, given in (("decoders", how.decoder), ("caches", how.cache), ("guides", how.guide)):
        if given is not None:
            spec.build(kind, given)


def check(candidates: Sequence[Candidate], made: dict[str, Any], asked: dict[str, Any], how: How) -> None:
    """ValueError when a model lacks what a task needs, before anything is measured."""
    from ..evaluate.suite import refusal

    for candidate in candidates:
        for name, task in made.items():
            if reason := refusal(candidate, task, asked[name], how):
                raise ValueError(f"{candidate.name} cannot do {name}: {reason}")


def measured(candidate: Candidate, name: str, task: Any, asked: Sequence[Any], how: How, kept: Any) -> Result:
    """One model at one task, told on standard error."""
    from ..evaluate.suite import evaluate

    tell = progress(10)

    def report(done: int, total: int) -> None:
        tell(done, total, f"{candidate.name} at {name}: {done} of {total}")

    return evaluate(candidate, name, task, asked, how, kept=kept, report=report)


def write(place: Path, told: Evaluation, about: dict, asked: dict[str, Any]) -> list[str]:
    """All files of the report."""
    import json

    from ..watch.eval_page import markdown, page

    rows = [json.dumps(clean(row), ensure_ascii=False) for row in each(told)]
    return whole(
        place,
        {
            FILE: json.dumps(clean(about), indent=1, ensure_ascii=False) + "\n",
            "eval.md": markdown(told),
            "eval.html": page(told),
            "items.jsonl": "".join(f"{row}\n" for row in rows),
        },
    )


def each(told: Evaluation) -> list[dict]:
    """Every item of every task and model: its figures, what was written, and what it took."""
    rows = []
    for found in [*told.results, *(told.others or ())]:
        for i in range(found.items):
            figures = {name: values[i] for name, values in found.part.figures.items()}
            row = {"model": found.model, "task": found.task, "item": i, **figures, "forwards": found.part.forwards[i]}
            row |= {"kind": found.kinds[i]} if found.kinds[i] else {}
            rows.append(row | ({"written": found.part.written[i]} if found.part.written else {}))
    return rows


def plain(told: Evaluation) -> dict:
    """All figures for machines."""
    from .bench import spread

    def line(one) -> dict:
        found = {"task": one.task, "figure": one.figure, "kind": one.kind, "main": one.main, "items": one.items}
        found |= {**spread(one.interval), "chance": one.chance, "verdict": one.verdict}
        if one.versus:
            apart = one.versus.difference
            found["other"] = spread(one.versus.interval)
            found |= {"difference": apart and spread(apart), "mcnemar_p": one.versus.p}
        return found

    took = [
        {
            "task": found.task,
            "model": found.model,
            "seconds": found.part.seconds,
            "forwards_per_item": found.forwards,
            "unsure": found.unsure,
            "how": found.part.layout,
        }
        for found in [*told.results, *(told.others or ())]
    ]
    about = {"at_chance": told.sentence, "lines": [line(one) for one in told.lines], "took": took}
    return {**about, "command": told.command, **{name.replace(" ", "_"): value for name, value in told.facts.items()}}


def show(told: Evaluation) -> None:
    """The table and what is at chance."""
    from rich.console import Console
    from rich.table import Table

    from ..watch.eval_page import cells

    console = Console()
    if not console.is_terminal:
        console.width = 160
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for i, name in enumerate(told.heads):
        shown.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
    for line in told.lines:
        shown.add_row(*cells(line, told.other is not None), style="bold" if line.main else "")
    console.print(shown)
    console.print(told.sentence, style="bold", markup=False, highlight=False)
