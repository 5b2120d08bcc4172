"""`unveil demo`: adapt the embedded parent on this machine, watch it fill held-out code, read the report."""

from __future__ import annotations

import ast
import math
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .places import PACKAGE, model_place, recipe_place
from .say import Json, result

if TYPE_CHECKING:
    from rich.console import Console

    from ..codecs.text import Text
    from ..data import Packed
    from ..denoiser import Denoiser
    from ..train import Result
    from ..watch.curves import Chart
    from ..watch.report import Sample

FILLS = 3  # held-out functions
PARENT, SHIPPED = "stdlib-ar", "stdlib-dlm"  # what is adapted here, and what came of doing so for longer
COMMANDS = (
    "unveil generate 'def mean(values):' --length 48",
    "unveil fill 'def area(radius):[[16]]\\n    return result\\n'",
    "unveil adapt stdlib-ar --data YOUR_FOLDER --minutes 10 --out my-dlm",
)
Minutes = Annotated[float, typer.Option(help="Of adaptation; loading, scoring and filling take about one more.")]
Out = Annotated[str, typer.Option("--out", "-o", help="The HTML report.")]
Save = Annotated[str | None, typer.Option(help="Keep the adapted model in this folder; default: it is thrown away.")]


def demo(
    minutes: Minutes = 3,
    out: Out = "report.html",
    parent: Annotated[str, typer.Option(help="The autoregressive checkpoint to adapt.")] = PARENT,
    save: Save = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is in the --save folder.")] = False,
    json: Json = False,
) -> None:
    """Adapt the embedded parent for a few minutes, see the bound fall beside its perplexity, and watch it fill code."""
    if minutes <= 0:
        raise ValueError(f"minutes is {minutes}; expected more than 0")
    model_place(parent)
    with tempfile.TemporaryDirectory() as scratch:
        show(minutes, Path(out), parent, save or f"{scratch}/model", overwrite, json)


def show(minutes: float, out: Path, parent: str, save: str, overwrite: bool, json: bool) -> None:
    """The whole demonstration."""
    from rich.console import Console

    from .. import hub
    from ..data import Packed
    from ..evaluate.likelihood import score
    from ..start import start
    from ..train import Recipe, train
    from ..watch.report import Report, write
    from .learn import WINDOWS, origin
    from .learn import score as held_out_figures

    began = time.monotonic()
    console = Console(stderr=json)
    say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
    recipe = Recipe.read(recipe_place("demo"), parent=parent, minutes=minutes)
    sources = ", ".join(recipe.data)
    say(f"1. Reading {sources} and the parent {parent}")
    made = start(recipe)
    side = made.corpus.held_out
    assert isinstance(side, Packed), "the demo's recipe reads texts"
    exact = score(hub.load_model(parent), side.windows(recipe.length, WINDOWS))
    say(f"   {sum(p.numel() for p in made.model.parameters()):,} parameters, {made.corpus.train.tokens:,} tokens")
    say(f"   its held-out perplexity, token by token: {exact.perplexity:.2f} (exact)")
    say(f"2. Adapting it for {minutes:g} min: {recipe.objective}")
    found = train(
        made.model,
        made.objective,
        made.corpus.train,
        recipe,
        out=save,
        text=made.text,
        overwrite=overwrite,
        evaluate=lambda model: held_out_figures(model, made, recipe.length),
        console=console,
        unveil=origin(recipe),
    )
    scored = [line for line in found.history if "held_out" in line]
    before, after = scored[0], scored[-1]
    figures = [
        figure("parent, token by token", exact.nats, True),
        figure("before adapting", before["held_out"], False),
        figure("after adapting", after["held_out"], False),
        figure("after, token by token", after["held_out_ar"], True),
    ]
    for name, kind, nats, perplexity in figures:
        say(f"   {name:<24} {kind:<6} {nats} nats per token, perplexity {perplexity}")
    say("3. Filling the middle of held-out functions")
    samples = filled(made.model, made.text, side, console, "just adapted")
    if (PACKAGE / "models" / SHIPPED / "config.json").is_file() and parent == PARENT:
        longer, text = hub.load(SHIPPED)
        samples += filled(longer, text, side, console, f"{SHIPPED}, adapted for longer")
    lead = (
        f"{parent} adapted for {minutes:g} min ({after['tokens']:,} tokens) on this machine by {recipe.objective}. "
        f"Scored on {exact.tokens:,} held-out tokens of {sources}; a bound is never below what it bounds."
    )
    head = ["", "kind", "nats per token", "perplexity"]
    report = Report(
        "From autoregressive to diffusion", lead, head, figures, charts(found, exact.nats), samples, COMMANDS
    )
    place = write(report, out)
    seconds = time.monotonic() - began
    say(f"4. The report is {place} ({seconds / 60:.1f} minutes in all). Try next:")
    for command in COMMANDS:
        say(f"   {command}")
    about = {"parent": exact.nats, "before": before["held_out"], "after": after["held_out"]}
    about |= {"after_ar": after["held_out_ar"], "tokens": after["tokens"], "seconds": seconds, "report": place}
    if json:
        result(about, True)


def figure(name: str, nats: float, exact: bool) -> list[str]:
    """A line of the table: what it is of, its kind, nats per token, perplexity."""
    return [name, "exact" if exact else "bound", f"{nats:.3f}", f"{'' if exact else '<= '}{math.exp(nats):.2f}"]


def charts(found: Result, parent: float) -> list[Chart]:
    """Held-out figures, training loss and speed against the tokens read."""
    from ..watch.curves import Chart

    lines = [line for line in found.history if "loss" in line]
    bound = [(line["tokens"], line["held_out"]) for line in found.history if "held_out" in line]
    causal = [(line["tokens"], line["held_out_ar"]) for line in found.history if "held_out_ar" in line]
    parts = {"loss": [(line["tokens"], line["loss"]) for line in lines]}
    for name in ("diffusion", "whole"):
        points = [(line["tokens"], line["parts"][name]) for line in lines if line["parts"].get(name)]
        if points:
            parts[{"diffusion": "bound in blocks", "whole": "bound, whole rows"}[name]] = points
    norms = [(line["tokens"], line["grad_norm"]) for line in lines]
    return [
        Chart("Held out", "tokens", "nats per token", {"bound": bound, "token by token": causal}, {"parent": parent}),
        Chart("In training", "tokens", "nats per token", parts),
        Chart("Gradient norm before clipping", "tokens", "", {"norm": norms}),
    ]


@dataclass(frozen=True)
class Gap:
    """A function without one of its lines, in tokens."""

    name: str
    before: list[int]
    middle: list[int]
    after: list[int]


def gaps(side: Packed, text: Text) -> Iterator[Gap]:
    """Short functions of held-out files, each without the line in its middle; at most one a file."""
    for number in range(len(side)):
        for name, code, start, stop in functions(text.decode(side.document(number))):
            ids, at, inside = text.encode(code), 0, []
            for place, piece in enumerate(text.pieces(ids)):
                if at < stop and at + len(piece) > start:
                    inside.append(place)
                at += len(piece)
            first, last = inside[0], inside[-1] + 1
            if 4 <= last - first <= 14:
                front = [] if text.start_id is None else [text.start_id]
                yield Gap(f"{name} in {side.names[number]}", front + ids[:first], ids[first:last], ids[last:])
                break


def functions(source: str) -> Iterator[tuple[str, str, int, int]]:
    """Functions of 5 to 11 lines: name, code, and where the code of its middle line begins and ends."""
    try:
        with warnings.catch_warnings(action="ignore"):  # old escapes in strings
            tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and 4 <= (node.end_lineno or 0) - node.lineno <= 10:
            code = "".join(source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno])
            lines = textwrap.dedent(code).splitlines(keepends=True)
            cut = len(lines) // 2
            line = lines[cut].strip()
            begun = {inner.lineno - node.lineno for inner in ast.walk(node) if isinstance(inner, ast.stmt)}
            if cut in begun and not line.startswith(('"', "'")):
                start = sum(map(len, lines[:cut])) + lines[cut].index(line)
                yield node.name, "".join(lines), start, start + len(line)


def filled(model: Denoiser, text: Text, side: Packed, console: Console, whose: str) -> list[Sample]:
    """Fill the first gaps, live in a terminal."""
    from itertools import islice

    import torch

    from ..attention import FULL
    from ..canvas import Canvas
    from ..watch.frames import frames
    from ..watch.report import Sample, marked
    from ..watch.terminal import Painter, play

    samples = []
    for gap in islice(gaps(side, text), FILLS):
        row = torch.tensor([*gap.before, *[model.mask_id] * len(gap.middle), *gap.after])
        canvas = Canvas.filling([row], model.mask_id, torch.zeros(1, dtype=torch.long), FULL)
        seen, painter = [], Painter(text)
        last = play(noted(frames(model, canvas, "confidence"), seen), text, console, titles=[f"{gap.name} ({whose})"])
        for frame in seen:
            painter.learn(frame)
        written = last.tokens[0][len(gap.before) : len(gap.before) + len(gap.middle)]
        same = sum(a == b for a, b in zip(written, gap.middle, strict=True))
        told = f"{same} of {len(written)} tokens as they stood there"
        if not console.is_terminal:
            line = f"   {gap.name} ({whose}): {text.decode(written)!r} for {text.decode(gap.middle)!r}, {told}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        samples.append(Sample(f"{gap.name} ({whose}): {told}", marked(last, painter, text), text.decode(gap.middle)))
    return samples


def noted(items: Iterator, into: list) -> Iterator:
    """The same items, each also put into a list."""
    for item in items:
        into.append(item)
        yield item
