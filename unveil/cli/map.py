"""`unveil map`: answers to a file of prompts, in shards, so that a job can be stopped and taken up again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .places import model_place
from .say import Json, result, table
from .write import Block, Caching, Decoding, Device, Guiding, Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..bulk import Job

Place = Annotated[str, typer.Argument(help="A folder, a hub id, an embedded model or an adapter.")]
Source = Annotated[
    list[str], typer.Option("--in", help="Rows with a prompt or messages: .jsonl, .json or .parquet; may be repeated.")
]
Out = Annotated[str, typer.Option("--out", "-o", help="The folder of the shards; again, to go on.")]
Here = Annotated[bool, typer.Option("--local", help="Work in this process, without Ray.")]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="HOST:PORT of a Ray cluster, or auto; default: one on this machine."),
]
Actors = Annotated[str, typer.Option(help="Copies of the model, as 4 or 1-8; default: from 1 to all that find room.")]
Cpus = Annotated[float, typer.Option(help="CPUs that each copy reserves, and threads it computes with.")]
Gpus = Annotated[float | None, typer.Option(help="GPUs that each reserves; default: 1 with --device cuda.")]


def map_(
    model: Place,
    source: Source,
    out: Out,
    local: Here = False,
    address: Address = None,
    actors: Actors = "1-",
    cpus: Cpus = 1.0,
    gpus: Gpus = None,
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
    from importlib.util import find_spec
    from pathlib import Path

    from rich.console import Console

    least, most = bounds(actors)
    if not local and not all(find_spec(each) for each in ("ray", "pyarrow")):
        raise ValueError("unveil map works on Ray: pip install 'unveil[ray]', or say --local to work in this process")
    from .. import bulk, spec
    from ..data import rows

    for kind, given in (("decoders", decoder), ("caches", cache), ("guides", guide)):
        if given is not None:
            spec.build(kind, given)
    digest, count = bulk.survey(bulk.identified(rows(source)))
    job = bulk.Job(
        model=model_place(model),
        source=digest,
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
    folder = Path(out)
    bulk.begun(folder, job)
    console = Console(stderr=True, quiet=json)
    before = sum(bulk.totals(folder)[name] for name in ("rows", "errors"))

    def report(done: int, failed: int) -> None:
        share = f"{before + done + failed:,} of {count:,} rows"
        console.print(f"{share}: {done:,} answered now, {failed:,} set aside", highlight=False)

    if local:
        from .. import hub

        done, failed = bulk.local(*hub.load(model, device=device), job, bulk.identified(rows(source)), folder, report)
    else:
        reserved = (1.0 if device.startswith("cuda") else 0.0) if gpus is None else gpus
        done, failed = on_ray(job, source, folder, address, (least, most, cpus, reserved), device, report)
    about = {"out": out, "answered": done, "failed": failed, **bulk.totals(folder)}
    said: list[tuple[str, object]] = [("folder", out)]
    said += [("now", f"{done:,} answered, {failed:,} set aside")]
    said.append(("in all", f"{about['rows']:,} answered, {about['errors']:,} set aside in {about['shards']:,} shards"))
    result(about, json, table(said))


def bounds(actors: str) -> tuple[int, int | None]:
    """The least and the most of `4`, `1-8` or `2-`, which has no most."""
    least, dash, most = actors.partition("-")
    if not least.isdigit() or (most and not most.isdigit()):
        raise ValueError(f"--actors is a number or a range, as 4, 1-8 or 2-; got {actors!r}")
    return int(least), int(most) if most else None if dash else int(least)


def on_ray(
    job: Job,
    source: list[str],
    out: object,
    address: str | None,
    pool: tuple[int, int | None, float, float],
    device: str,
    report: Callable[[int, int], None],
) -> tuple[int, int]:
    """The job in actors; whatever Ray prints goes beside the results and not among them."""
    from contextlib import redirect_stdout
    from pathlib import Path

    from .. import bulk
    from ..cluster.bulk import Pool, spread
    from ..cluster.connection import joined
    from ..data import rows

    model = Path(job.model)
    place = str(model.resolve()) if model.exists() else job.model
    wanted = Pool(*pool)
    with redirect_stdout(sys.stderr), joined(address):
        return spread(
            job,
            lambda: bulk.identified(rows(source)),
            Path(str(out)),
            model=place,
            device=device,
            pool=wanted,
            report=report,
        )
