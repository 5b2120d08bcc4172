"""`unveil trajectory`: when a model settles what, whether it knows what it gets wrong, and what disturbs it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .measure import Data, Device, Field, Held, Place, wanted
from .places import model_place
from .say import Json, clean, result

if TYPE_CHECKING:
    from ..codecs.text import Text
    from ..evaluate.trajectory.labels import Labels
    from ..evaluate.trajectory.study import Plan

Kinds = Annotated[str, typer.Option(help="What words are: english (a proxy), python (exact), or auto.")]
Out = Annotated[str, typer.Option("--out", "-o", help="A folder for runs, figures and pages; again, to go on.")]
Masks = Annotated[str, typer.Option("--mask", help="Shares of the text that are masked, with commas.")]
Orders = Annotated[str, typer.Option(help="In which blanks are revealed: confidence, random, or both with a comma.")]
Sequences = Annotated[int, typer.Option(help="Windows of text a run; the publication has 200.")]
Probed = Annotated[int, typer.Option(help="Positions that probes are fitted and tested on; 0: no probes.")]
Probes = Annotated[int, typer.Option(help="Steps at which they are, evenly spread.")]
Types = Annotated[int, typer.Option(help="Tokens that a probe tells apart, the most frequent ones.")]
Perturbed = Annotated[int, typer.Option(help="Sequences of each run that are perturbed; 0: none.")]
Disturbed = Annotated[int, typer.Option(help="Steps at which they are, evenly spread.")]
Share = Annotated[float, typer.Option(help="Share of what is written that is masked again.")]
More = Annotated[int, typer.Option(help="Further steps in the variant with an extra budget.")]
FILE, ASKED = "trajectory.json", "asked.json"


def trajectory(
    model: Place = "stdlib-dlm",
    data: Data = None,
    field: Field = "text",
    held_out: Held = None,
    labels: Kinds = "auto",
    mask: Masks = "0.5,0.8",
    orders: Orders = "confidence,random",
    steps: Annotated[int, typer.Option(help="Predictions of a trajectory.")] = 32,
    seeds: Annotated[int, typer.Option(help="Runs of each kind, each with masks of its own.")] = 3,
    sequences: Sequences = 24,
    length: Annotated[int, typer.Option(help="Tokens of each window.")] = 64,
    probed: Probed = 3600,
    probe_steps: Probes = 5,
    types: Types = 100,
    perturbed: Perturbed = 8,
    perturb_steps: Disturbed = 5,
    share: Share = 0.15,
    more: More = 8,
    out: Out = "trajectory",
    overwrite: Annotated[bool, typer.Option(help="Replace what an earlier study left in --out.")] = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Record how masked text is filled, step by step, and measure when what settles, sureness and sensitivity."""
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise ValueError("unveil trajectory fits its probes with scikit-learn: pip install 'unveil[eval]'")
    from .. import __version__, hub
    from ..data import prepare
    from ..evaluate.trajectory.record import attention
    from ..evaluate.trajectory.sequences import draw
    from ..evaluate.trajectory.study import Plan, measured, observe
    from ..evaluate.unfinished import files
    from ..folder import locate
    from ..nn.grow import bare

    plan = Plan(
        masks=numbers(mask),
        orders=tuple(part.strip() for part in orders.split(",")),
        seeds=seeds,
        sequences=sequences,
        length=length,
        steps=steps,
        probed=probed,
        probe_steps=min(probe_steps, steps),
        types=types,
        perturbed=perturbed,
        perturb_steps=min(perturb_steps, steps - 1),
        share=share,
        more=more,
    )
    if labels not in ("auto", "english", "python"):
        raise ValueError(f"no labels called {labels!r}; there are: auto, english, python")
    place = Path(out).expanduser().resolve()
    vacant(place, out, overwrite)
    network, text = hub.load(model_place(model), device=device)
    network = network.eval()
    attention(network)
    limit = network.context_length
    if limit is not None and length > limit:
        raise ValueError(f"--length is {length}; the model's context holds {limit} positions")
    ours = bare(network).config.get("unveil") or {}
    sources, held, sides = wanted(ours, data, held_out)
    corpus = prepare(sources, text, field=field, close=ours.get("close", True), **sides)
    side = corpus.held_out if held else corpus.train
    kinds = labelled(labels, side.names)
    checkpoint = files(locate(model_place(model)))
    asked = {"model": model, "data": sources, "held_out": held, "labels": kinds.name, **asdict(plan)}
    asked |= {"version": __version__, "checkpoint": checkpoint}
    agree(place, asked, overwrite)
    windows = draw(side, text, kinds, length, plan.windows)
    tell = lambda line: print(line, file=sys.stderr, flush=True)
    try:
        observe(plan, network, windows, place, tell)
        found = list(measured(plan, kinds, place, tell))
    except KeyboardInterrupt:
        print(f"stopped: what is recorded lies in {place}; the same command goes on", file=sys.stderr)
        raise
    about = {"model": model, "data": ", ".join(sources), "held_out": held, "attention": attention(network).kind}
    about |= {"labels": kinds.name, "labels_are": kinds.about, "windows": len(windows.tokens), **asdict(plan)}
    about["cells"] = found
    about["files"] = write(place, about, plan, kinds, text)
    if json:
        result(about, True)
        return
    show(about)
    print(f"In {place}: {', '.join(about['files'])}")


def numbers(text: str) -> tuple[float, ...]:
    """Shares with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--mask is {text!r}; expected shares with commas, such as 0.5,0.8") from None


def vacant(place: Path, out: str, overwrite: bool) -> None:
    """Refuse a place before anything is loaded. An unfinished study may lie there."""
    if place.is_file():
        raise ValueError(f"{out} is a file: expected a folder for the results")
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not (place / ASKED).is_file():
        raise ValueError(f"{out} holds something that no study of trajectories left there: choose another folder")
    if (place / FILE).is_file() and not overwrite:
        raise ValueError(f"{out} exists and holds a finished study: choose another folder, or --overwrite")


def agree(place: Path, asked: dict[str, Any], overwrite: bool) -> None:
    """Take up what was asked here before, or begin. ValueError where it was something else."""
    import json
    import shutil

    from ..evaluate.trajectory.study import RUNS
    from ..whole import put

    path, here = place / ASKED, json.loads(json.dumps(asked))
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in here.items() if there.get(name) != value]
        if other and not overwrite:
            name = other[0]
            raise ValueError(
                f"{place} holds an unfinished study of something else, {name} ({there.get(name)!r} there, "
                f"{here[name]!r} here): repeat that command, choose another folder, or --overwrite"
            )
        if overwrite:
            shutil.rmtree(place / RUNS, ignore_errors=True)
            (place / FILE).unlink(missing_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    put(path, (json.dumps(here, indent=1) + "\n").encode())


def labelled(name: str, documents: list[str]) -> Labels:
    """Exact classes where most documents are Python, else English, unless one is asked for."""
    from ..evaluate.trajectory import english, python

    if name == "auto":
        code = sum(document.split("#")[0].endswith(".py") for document in documents)
        name = "python" if 2 * code > len(documents) else "english"
    return {"english": english.LABELS, "python": python.LABELS}[name]


def write(place: Path, about: dict[str, Any], plan: Plan, labels: Labels, text: Text) -> list[str]:
    """Pages and pictures, and at last the figures; the names of all."""
    import json

    from ..evaluate.trajectory import recording
    from ..evaluate.trajectory.study import cells
    from ..watch.scenes import scenes
    from ..watch.trajectory_page import page
    from ..whole import put

    shown = {cell.name: recording.load(cell.file(place, 0)) for cell in cells(plan)}
    seen = [scene for name, run in shown.items() for scene in scenes(name, run, labels, text)]
    put(place / "trajectory.html", page(about, seen).encode())
    names = ["trajectory.html", *pictures(place, about, seen), FILE]
    told = json.dumps(clean(about | {"files": names}), indent=1, ensure_ascii=False) + "\n"
    put(place / FILE, told.encode())  # last: a study without it is unfinished
    return names


def pictures(place: Path, about: dict[str, Any], seen: list) -> list[str]:
    """PNG files, where matplotlib is installed; their names."""
    from ..watch import trajectory_plots
    from ..whole import put

    found = []
    try:
        for name, content in trajectory_plots.pictures(about, seen).items():
            put(place / name, content)
            found.append(name)
    except ModuleNotFoundError:
        print("no pictures: matplotlib is not installed (pip install 'unveil[plot]')", file=sys.stderr)
    return found


def show(about: dict[str, Any]) -> None:
    """The table, then each cell's claims."""
    from rich.console import Console
    from rich.table import Table

    from ..watch.trajectory_page import COLUMNS, line

    console = Console()
    if not console.is_terminal:
        console.width = 140
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for cell in about["cells"]:
        table.add_row(*line(cell))
    console.print(table)
    styles = {"holds": "green", "reversed": "red", "not shown": "yellow", "not measured": "dim"}
    for cell in about["cells"]:
        console.print(f"\n{cell['cell']}", style="bold", markup=False)
        for claim in cell["claims"]:
            console.print(f"  {claim['sentence']}", style=styles[claim["verdict"]], markup=False, highlight=False)
    console.print(f"\nLabels are {about['labels_are']}.", markup=False, highlight=False)
