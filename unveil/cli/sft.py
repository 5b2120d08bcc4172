"""`unveil sft`: fine-tune a model on answers to prompts, or on which of two answers is the better one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from .launch import Processes, Restarts, launched
from .learn import (
    Data,
    Device,
    Goal,
    Length,
    Minutes,
    More,
    Name,
    Out,
    Overwrite,
    Rate,
    Resume,
    Rows,
    Seed,
    Tokens,
    Updates,
    combined,
    run,
)
from .say import Json

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..start import Start

Adapter = Annotated[
    str | None, typer.Option(help="Train an adapter and leave the weights: r=8,alpha=16,targets=all; needs peft.")
]
Exercise = Annotated[str | None, typer.Option(help="A task whose test problems are decoded; default: held-out rows.")]
Problems = Annotated[int, typer.Option(help="Decoded at every evaluation; 0: none.")]
Decoder = Annotated[str, typer.Option(help="How they are decoded.")]
PAIRS = 64  # held out, on which the margin is measured now and then


def sft(
    out: Out,
    model: Annotated[str, typer.Argument(help="The checkpoint to tune: folder, hub id or embedded.")] = "stdlib-dlm",
    recipe: Name = "sft",
    data: Data = None,
    objective: Goal = None,
    lora: Adapter = None,
    task: Exercise = None,
    problems: Problems = 64,
    decoder: Decoder = "threshold",
    minutes: Minutes = None,
    tokens: Tokens = None,
    steps: Updates = None,
    rows: Rows = None,
    length: Length = None,
    lr: Rate = None,
    seed: Seed = None,
    set_: More = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    nproc: Processes = 1,
    max_restarts: Restarts = 0,
    json: Json = False,
) -> None:
    """Fine-tune on instructions, prompts given and answers learnt with their ends: all weights, or an adapter."""
    from .. import spec

    if problems < 0:
        raise ValueError(f"problems is a number to decode, or 0 for none; got {problems}")
    for kind, given in (("tasks", task), ("decoders", decoder)):
        if given is not None:
            spec.build(kind, given)
    flags: dict[str, object] = {"parent": model, "chat": True, "lora": lora, "objective": objective}
    flags |= {"rows": rows, "length": length, "lr": lr, "seed": seed}
    flags |= {"minutes": minutes, "tokens": tokens, "steps": steps}
    chosen = combined(recipe, flags, data, set_)
    if not data and chosen.data == ("stdlib",):
        raise ValueError("sft needs rows of messages, or of prompt and response: name a .jsonl or .parquet by --data")
    if launched(nproc, max_restarts):
        return
    run(chosen, out, resume, overwrite, device, json, lambda made: judged(made, task, problems, decoder))


def judged(made: Start, task: str | None, problems: int, decoder: str) -> Callable[[Denoiser], dict[str, float]]:
    """What is measured beside the bound: right answers and, of preferences, the margin on pairs held out."""
    from .. import spec
    from ..data import Conversations, Pairs
    from ..evaluate.answers import Exam
    from ..objectives.preference import Preference
    from ..tasks import to_be_written
    from ..train.machine import moved

    model, side, length, objective = made.model, made.corpus.held_out, made.recipe.length, made.objective
    exam = None
    if problems and model.mask_id >= 0:
        if task is not None:
            exam = Exam.of_task(model, made.text, to_be_written(spec.build("tasks", task), task), problems)
        elif isinstance(side, Conversations) and len(side) and not isinstance(side, Pairs):
            exam = Exam.of_rows(model, made.text, side, length, problems)

    def found(model: Denoiser) -> dict[str, float]:
        numbers = {}
        if exam is not None:
            right = exam.sit(model, decoder)
            numbers |= {"exact_match": right.mean, "exact_match_low": right.low, "exact_match_high": right.high}
        if isinstance(objective, Preference) and isinstance(side, Pairs) and len(side):
            batch = side.samples(0, min(PAIRS, side.count(length)), length)
            loss = objective(model, moved(batch, next(model.parameters()).device))
            numbers |= {f"held_out_{name}": float(loss.parts[name] / loss.count) for name in ("margin", "right")}
        return numbers

    return found
