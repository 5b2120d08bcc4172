"""`unveil calibrate`: fit to a model and its data what Prophet and TSPD decide by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..whole import put
from .places import model_place
from .say import Json, clean, progress, result, table

if TYPE_CHECKING:
    from ..evaluate.calibrate_prophet import Levels
    from ..evaluate.problems import Problem, Subject

app = typer.Typer(
    help="Fit to a model and its data what Prophet and TSPD decide by.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Place = Annotated[str, typer.Argument(help="A folder, a hub id or an embedded model.")]
Job = Annotated[str, typer.Option("--task", help="A spec; its training problems are decoded, never those for tests.")]
Seed = Annotated[int, typer.Option(help="Of the problems, and of what is trained on them.")]
Block = Annotated[int | None, typer.Option(help="Positions per block, as it will be decoded; default: as in bench.")]
Cache = Annotated[str | None, typer.Option(help="As it will be decoded; default: causal where exact, else recompute.")]
Batch = Annotated[int, typer.Option(help="Problems decoded together.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Overwrite = Annotated[bool, typer.Option(help="Replace a file that is there.")]
NEVER = 1e9  # a level that no gap reaches, as a number that a spec can spell


@app.command(epilog="[dim]Example[/dim]\n\n  unveil calibrate prophet my-dlm --task arithmetic --out prophet.json")
def prophet(
    model: Place,
    task: Job,
    count: Annotated[int, typer.Option(help="Problems; at least 50, better 200.")] = 200,
    region: Annotated[
        str | None,
        typer.Option(help="A prophet spec that says where the answer is; default: behind the task's anchor, or last."),
    ] = None,
    agreement: Annotated[float, typer.Option(help="Share of early commits that have to be right.")] = 0.95,
    block: Block = None,
    cache: Cache = None,
    batch: Batch = 16,
    seed: Seed = 0,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="A .json file for the spec and what it rests on.")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """The gaps between the two best logits from which on the answer no longer changes, as a spec to decode with."""
    import torch

    from .. import spec
    from ..evaluate.calibrate_prophet import TRACES, fit

    if count < TRACES:
        raise ValueError(f"count is {count}, which is too few to fit levels to; expected at least {TRACES}, better 200")
    if region is not None:
        spec.build("decoders", region)
    place = vacant(out, ".json", overwrite) if out is not None else None
    subject, problems, cache, block = ground(model, task, count, seed, device, cache, block)
    tail = bool(problems[0].example.tail)
    if tail and subject.model.attention.kind == "leader":
        raise ValueError(
            "a leader model fills what something follows by full attention, which prophet was not fitted to"
        )
    named = region or answer(subject)
    rows = [torch.tensor(p.row if tail else p.row[: p.first], device=subject.device) for p in problems]
    length = None if tail else subject.task.length
    levels = fit(subject.model, rows, length, named, agreement=agreement, block=block, cache=cache, together=batch)
    found = spelled(named, levels)
    about = {"spec": found, "model": model, "task": task, "cache": cache, "block": block, "agreement": agreement}
    about |= {**levels.options, **{name: getattr(levels, name) for name in FIGURES}}
    if place is not None:
        write(place, about)
        about["file"] = place
    parts = zip(
        ("early", "middle", "late"), levels.options.values(), levels.steps, levels.above, levels.final, strict=True
    )
    told: list[tuple[str, object]] = [
        (f"{name} level", f"{level:.2f}: {above} of {steps} predictions reach it, {final} of them final")
        if math.isfinite(level)
        else (
            f"{name} level",
            f"never: {f'of {steps} predictions too few were final' if steps else 'no prediction could be judged'}",
        )
        for name, level, steps, above, final in parts
    ]
    right = "" if math.isnan(levels.right) else f", {levels.right:.1%} of them with the answer they had anyway"
    told.append(
        ("on these", f"{levels.committed:.1%} of {levels.traces} commit early{right}; {levels.saved:.1%} saved")
    )
    result(about, json, [*table(told), found])


FIGURES = ("traces", "steps", "above", "final", "committed", "right", "saved")


@app.command(epilog="[dim]Example[/dim]\n\n  unveil calibrate tspd my-dlm --task sudoku --out sensor.safetensors")
def tspd(
    model: Place,
    task: Job,
    out: Annotated[str, typer.Option("--out", "-o", help="The .safetensors file of the sensor.")],
    count: Annotated[int, typer.Option(help="Problems; at least 20, and 2,000 would not be too many.")] = 400,
    block: Block = None,
    cache: Cache = None,
    guide: Annotated[str | None, typer.Option(help="As it will be decoded.")] = None,
    batch: Batch = 16,
    ablate: Annotated[bool, typer.Option(help="Train sensors without one feature each, for the figures.")] = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Train the sensor that tells final tokens from others by how their confidence went, for one model and block."""
    import torch

    from ..evaluate.calibrate_tspd import LEAST, calibrate

    if count < LEAST:
        raise ValueError(f"count is {count}, which is too few to train a sensor on; expected at least {LEAST} problems")
    place = vacant(out, ".safetensors", overwrite)
    subject, problems, cache, block = ground(model, task, count, seed, device, cache, block)
    if problems[0].example.tail:
        raise ValueError(
            f"a sensor is trained on answers that follow a prompt, and {task} asks in the middle of a text"
        )
    prompts = [torch.tensor(p.row[: p.first], device=subject.device) for p in problems]
    length = subject.task.length
    tell = progress(10)
    sensor, report = calibrate(
        subject.model,
        prompts,
        length,
        block or length,
        seed,
        cache=cache,
        guide=guide,
        rows=batch,
        ablate=ablate,
        report=lambda done, total: tell(done, total, "decoded"),
    )
    sensor.save(place)
    found = f"tspd(sensor={str(place)!r})"
    about = {"spec": found, "file": place, "model": model, "task": task, "cache": cache, "block": block or length}
    about |= {name: getattr(report, name) for name in vars(report)}
    told: list[tuple[str, object]] = [
        ("problems", f"{report.prompts}, one in five held out; {report.predictions:,} predictions"),
        ("sensor", f"area under the curve {report.auc:.3f}, of the confidence alone {report.confidence:.3f}"),
        ("passes", f"{report.forwards:.1f} a problem, {report.vanilla:.1f} at one token a step"),
        ("agreement", f"{report.agreement:.1%} of held-out tokens as at one token a step"),
        *((f"without {name}", f"{area:.3f}") for name, area in report.without.items()),
    ]
    result(about, json, [*table(told), found])


def ground(
    model: str, task: str, count: int, seed: int, device: str, cache: str | None, block: int | None
) -> tuple[Subject, list[Problem], str, int | None]:
    """The model with its task, training problems, and the cache and block that it is decoded with, asked for or not."""
    from .. import hub, spec
    from ..evaluate.problems import Subject
    from ..tasks import to_be_written

    asked = to_be_written(spec.build("tasks", task), task)
    examples = asked.examples(count, "train", seed)
    network, text = hub.load(model_place(model), device=device)
    subject, look = Subject(network.eval(), text, asked), network.attention
    problems = [subject.problem(example) for example in examples]
    return subject, problems, cache or look.cache, look.block if block is None else block


def answer(subject: Subject) -> str:
    """Where the answer is: behind what the task's completions write before it, or what stands last."""
    if not subject.task.anchor:
        return "prophet"
    return f"prophet(region='anchor', anchor={subject.text.encode(subject.task.anchor)})"


def spelled(region: str, levels: Levels) -> str:
    """The spec with its levels put in."""
    name, _, options = region.partition("(")
    found = [f"{option}={round(min(level, NEVER), 3):g}" for option, level in levels.options.items()]
    kept = options.strip().removesuffix(")")
    return f"{name}({', '.join([*([kept] if kept else []), *found])})"


def vacant(out: str, suffix: str, overwrite: bool) -> Path:
    """The file to write, refused before anything is decoded."""
    place = Path(out).expanduser()
    if place.suffix != suffix:
        raise ValueError(f"what is found is written to a {suffix} file, not {out}")
    if place.exists() and not overwrite:
        raise ValueError(f"{out} is there already: give another name, or --overwrite")
    return place


def write(place: Path, about: dict) -> None:
    """The file, with whatever folders it needs."""
    import json

    place.parent.mkdir(parents=True, exist_ok=True)
    put(place, json.dumps(clean(about), indent=1, ensure_ascii=False) + "\n")
