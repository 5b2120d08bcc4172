"""`unveil map`: answers to a file of prompts, in shards, so that a job can be stopped and taken up again."""

from __future__ import annotations

from typing import Annotated

import typer

from .places import model_place
from .say import Json, result, table
from .write import Block, Caching, Decoding, Device, Guiding, Steps

Place = Annotated[str, typer.Argument(help="A folder, a hub id, an embedded model or an adapter.")]
Source = Annotated[
    list[str], typer.Option("--in", help="Rows with a prompt or messages: .jsonl, .json or .parquet; may be repeated.")
]
Out = Annotated[str, typer.Option("--out", "-o", help="The folder of the shards; again, to go on.")]
Here = Annotated[bool, typer.Option("--local", help="Work in this process.")]


def map_(
    model: Place,
    source: Source,
    out: Out,
    local: Here = False,
    length: Annotated[int, typer.Option("--length", "-l", help="Tokens to write.")] = 64,
    decoder: Decoding = "threshold",
    cache: Caching = None,
    guide: Guiding = None,
    block: Block = None,
    steps: Steps = None,
    chat: Annotated[bool, typer.Option(help="Put prompts into the model's chat template.")] = False,
    seed: Annotated[int, typer.Option(help="Keys every random choice, together with a row's id.")] = 0,
    shard: Annotated[int, typer.Option(help="Rows that are decoded and written together.")] = 64,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Answer every row of a file; run again, it does what is missing, and rows that fail are set aside."""
    from pathlib import Path

    from rich.console import Console

    from .. import bulk, hub
    from ..data import rows

    if not local:
        raise ValueError("map works in one process so far: say so with --local")
    job = bulk.Job(
        model=model_place(model),
        source=bulk.digest(bulk.identified(rows(source))),
        length=length,
        decoder=decoder,
        cache=cache,
        guide=guide,
        block=block,
        steps=steps,
        chat=chat,
        seed=seed,
        shard=shard,
    )
    network, text = hub.load(job.model, device=device)
    console = Console(stderr=True, quiet=json)

    def report(done: int, failed: int) -> None:
        console.print(f"{done:,} answered, {failed:,} set aside", highlight=False)

    done, failed = bulk.local(network, text, job, bulk.identified(rows(source)), Path(out), report)
    about = {"out": out, "answered": done, "failed": failed, **bulk.totals(Path(out))}
    said: list[tuple[str, object]] = [("folder", out)]
    said += [("now", f"{done:,} answered, {failed:,} set aside")]
    said.append(("in all", f"{about['rows']:,} answered, {about['errors']:,} set aside in {about['shards']:,} shards"))
    result(about, json, table(said))
