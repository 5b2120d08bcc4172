"""`unveil task`: rows of problems with a right answer, to train on."""

from __future__ import annotations

from typing import Annotated

import typer

from ..whole import put
from .say import Json, result, table

Names = Annotated[list[str], typer.Argument(help="One or several, mixed in turn: sudoku 'countdown(largest=9)'.")]
Count = Annotated[int, typer.Option(help="Rows in all.")]
Split = Annotated[str, typer.Option(help="train or test; no problem is in both.")]
Out = Annotated[str, typer.Option("--out", "-o", help="The .jsonl file to write.")]


def task(
    names: Names,
    out: Out,
    rows: Count = 10_000,
    split: Split = "train",
    seed: Annotated[int, typer.Option(help="Of the problems that are drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    json: Json = False,
) -> None:
    """Write problems with a right answer as rows of prompt and response, or of text where they ask in its middle."""
    import json as plain
    from pathlib import Path

    from .. import spec
    from ..tasks import to_be_written

    path = Path(out)
    if path.suffix != ".jsonl":
        raise ValueError(f"rows are written to a .jsonl file, not {out}")
    if path.exists() and not overwrite:
        raise ValueError(f"{out} is there already: give another name, or --overwrite")
    if len(set(names)) < len(names):
        raise ValueError(f"each task is named once, got {' '.join(names)}")
    made = [to_be_written(spec.build("tasks", name), name) for name in names]
    if rows < len(made):
        raise ValueError(f"expected at least one row of each of {len(made)} tasks, got {rows} rows")
    shares = [len(range(i, rows, len(made))) for i in range(len(made))]
    drawn = [one.examples(share, split, seed) for one, share in zip(made, shares, strict=True)]
    mixed = [drawn[i % len(made)][i // len(made)] for i in range(rows)]
    tailed = {any(example.tail for example in some) for some in drawn}
    if len(tailed) > 1:
        raise ValueError("tasks that ask in the middle of a text make rows of text, the others of prompt and response")
    path.parent.mkdir(parents=True, exist_ok=True)
    told = [example.row for example in mixed]
    put(path, "".join(plain.dumps(row, ensure_ascii=False) + "\n" for row in told))
    about = {
        "file": path,
        "rows": rows,
        "split": split,
        "seed": seed,
        "tasks": dict(zip(names, shares, strict=True)),
        "longest": max(len("".join(row.values()).encode()) for row in told),
    }
    said = [("file", path), ("rows", f"{rows:,}, {split} split"), *((n, f"{s:,}") for n, s in about["tasks"].items())]
    result(about, json, table([*said, ("longest", f"{about['longest']} bytes in a row")]))
