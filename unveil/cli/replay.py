"""`unveil watch`: a recorded run once more, step by step in a terminal and as plain text elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from .say import Json, result

if TYPE_CHECKING:
    from ..watch.frames import Frame

File = Annotated[str, typer.Argument(metavar="TRACE", help="What --trace of generate or fill has written.")]
Speed = Annotated[float, typer.Option(help="Times as fast as it ran.")]
Pause = Annotated[float | None, typer.Option(help="Seconds to show each step, instead of those it took.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Whose tokenizer; default: that of the trace.")]


def watch(trace: File, speed: Speed = 1.0, pause: Pause = None, model: Model = None, json: Json = False) -> None:
    """Replay a run from its trace: tokens coloured by how sure the model was, and what was taken back."""
    import sys
    from collections import deque

    from rich.console import Console

    from ..codecs.text import Text
    from ..folder import locate
    from ..watch.terminal import play
    from ..watch.trace import read
    from .places import model_place

    if speed <= 0:
        raise ValueError(f"speed is {speed}; expected more than 0, such as 0.1 for ten times as slow")
    if pause is not None and pause < 0:
        raise ValueError(f"pause is {pause}; expected 0 seconds or more")
    found = read(trace)
    header = found.header
    text = Text.load(locate(model_place(model or header.tokenizer)))
    if max(map(max, header.rows)) >= max(text.vocab, header.mask_id + 1):
        raise ValueError(
            f"{trace} has tokens that the tokenizer of {model or header.tokenizer} lacks: give its --model"
        )
    if sys.stdout.isatty() and not json:
        prompts = [row[: row.index(header.mask_id)] for row in header.rows]
        titles = [text.decode(prompt).split("\n")[0][:60] for prompt in prompts]
        last = play(paced(found.frames(), speed, pause), text, Console(), titles=titles)
    else:
        last = deque(found.frames(), maxlen=1)[0]
    texts = [text.decode(row) for row in last.tokens]
    written = sum(row.count(header.mask_id) for row in header.rows)
    about = {
        **{name: getattr(header, name) for name in ("model", "decoder", "cache", "guide", "block", "steps", "seeds")},
        "predictions": len(found.steps),
        "forwards": last.forwards,
        "tokens": written,
        "tokens_per_forward": written / last.forwards if last.forwards else None,
        "taken_back": sum(len(row) for step in found.steps for row in step["taken_back"]),
        "seconds": sum(step["seconds"] for step in found.steps),
        "texts": texts,
    }
    if json or not sys.stdout.isatty():
        result(about, json, texts)


def paced(frames: Iterable[Frame], speed: float, pause: float | None) -> Iterator[Frame]:
    """Each frame when its time has come; showing it takes time as well, and that is not added."""
    due = time.monotonic()
    for frame in frames:
        due += frame.seconds / speed if pause is None else pause
        time.sleep(max(0.0, due - time.monotonic()))
        yield frame
