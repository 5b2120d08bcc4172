"""`unveil generate` and `unveil fill`: write text, live in a terminal and plain elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..codecs import blanks
from .places import model_place
from .say import Json, result

if TYPE_CHECKING:
    from ..canvas import Canvas
    from ..codecs.spelling import Spelling
    from ..codecs.text import Text
    from ..decoders import Decoder
    from ..denoiser import Denoiser
    from ..watch.frames import Frame

Model = Annotated[str, typer.Option("--model", "-m", help="A folder, a hub id or an embedded model.")]
Decoding = Annotated[str, typer.Option("--decoder", "-d", help="A spec such as threshold(tau=0.9); see unveil list.")]
Caching = Annotated[
    str | None, typer.Option("--cache", "-c", help="A spec; default: causal where exact, else recompute.")
]
Guiding = Annotated[str | None, typer.Option("--guide", "-g", help="A spec such as eos(policy='stop').")]
Block = Annotated[int | None, typer.Option(help="Positions per block; default: the model's own, or one block.")]
Steps = Annotated[int | None, typer.Option(help="Predictions allowed per block; default: as the decoder likes.")]
Seed = Annotated[int, typer.Option(help="Keys every random choice; row b uses seed + b.")]
Heat = Annotated[float | None, typer.Option("--temperature", "-t", help="0: the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Share of probability that draws are made from.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Compile passes of small fixed width (CUDA graphs on a GPU); takes a while.")
]
Traced = Annotated[str | None, typer.Option("--trace", help="Record the run in this file, for unveil watch.")]
Details = Annotated[bool, typer.Option("--statistics", help="Record also what was said of positions not written.")]


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="One or more; default: standard input.")] = None,
    model: Model = "stdlib-dlm",
    length: Annotated[int, typer.Option("--length", "-l", help="Tokens to write.")] = 64,
    decoder: Decoding = "threshold",
    cache: Caching = None,
    guide: Guiding = None,
    block: Block = None,
    steps: Steps = None,
    seed: Seed = 0,
    temperature: Heat = None,
    top_p: TopP = None,
    n: Annotated[int, typer.Option("-n", help="Answers per prompt.")] = 1,
    chat: Annotated[bool, typer.Option(help="Put prompts into the model's chat template.")] = False,
    device: Device = "cpu",
    compile: Compiled = False,
    trace: Traced = None,
    statistics: Details = False,
    json: Json = False,
) -> None:
    """Continue prompts: diffusion in blocks, or token by token with --block 1 where the model can."""
    from .. import hub
    from ..canvas import Canvas
    from ..codecs.spelling import Spelling
    from ..nn.fixed import fix
    from ..sample import row_seeds, writer

    if n < 1:
        raise ValueError(f"-n is {n}; expected at least one answer per prompt")
    record = recording(trace, statistics, model, decoder, temperature, top_p)
    given = prompts or [sys.stdin.read().removesuffix("\n") if not sys.stdin.isatty() else ""]
    loaded, text = hub.load(model_place(model), device=device)
    network = writer(loaded.eval())
    if compile:
        fix(network)
    if network is not loaded:
        told = "is autoregressive and writes token by token; unveil adapt makes a diffusion model of it"
        print(f"{model} {told}", file=sys.stderr)
    rows = [ids for prompt in given for ids in [tokens(text, prompt, chat)] * n]
    titles = [prompt.split("\n")[0][:60] for prompt in given for _ in range(n)]
    chosen = chosen_decoder(decoder, temperature, top_p)
    if n > 1 and not chosen.temperature:
        print("at temperature 0 all answers to a prompt are the same; try --temperature 0.8", file=sys.stderr)
    import torch

    prompt_rows = [torch.tensor(row, dtype=torch.long, device=device) for row in rows]
    canvas = Canvas.answering(prompt_rows, length, network.mask_id, row_seeds(seed, len(rows)))
    cost = run(network, text, canvas, chosen, cache, block, steps, titles, json, record, guide)
    spelling, samples = Spelling(text), []
    for index, (row, ids) in enumerate(zip(canvas.rows(), rows, strict=True)):
        answer = row[len(ids) :].tolist()
        if text.eos_id in answer:
            answer = answer[: answer.index(text.eos_id)]
        completion = spelling.behind([] if chat else ids, answer)  # one to a conversation is a text of its own
        prompt = given[index // n]
        whole = completion if chat else prompt + completion
        samples.append({"prompt": prompt, "completion": completion, "text": whole, "seed": seed + index})
    made = {"model": model, "decoder": decoder, **cost, "samples": samples}
    if json or not sys.stdout.isatty():
        result(made, json, [sample["text"] for sample in samples])


def fill(
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="With blanks; default: stdin.")] = None,
    model: Model = "stdlib-dlm",
    length: Annotated[int, typer.Option("--length", "-l", help="Tokens in a blank written [[]].")] = 16,
    decoder: Decoding = "confidence",
    cache: Caching = None,
    guide: Guiding = None,
    block: Block = None,
    steps: Steps = None,
    seed: Seed = 0,
    temperature: Heat = None,
    top_p: TopP = None,
    device: Device = "cpu",
    trace: Traced = None,
    statistics: Details = False,
    json: Json = False,
) -> None:
    """Fill blanks anywhere: [[8]] is eight tokens, [[2-12]] the best length in that range, [[]] the default.

    Leave the space before a word, and the indent of a line, inside the blank: most tokens begin with their space.
    """
    import torch

    from .. import hub
    from ..attention import FULL
    from ..canvas import Canvas
    from ..codecs.spelling import Spelling
    from ..evaluate.lengths import DRAWS, fit
    from ..sample import row_seeds

    # A shell hands over backslash and n where a person means a new line; standard input has real ones.
    given = [t.replace("\\n", "\n").replace("\\t", "\t") for t in texts] if texts else [sys.stdin.read()]
    record = recording(trace, statistics, model, decoder, temperature, top_p)
    if record and len(given) > 1:
        raise ValueError(f"a trace holds one run, and {len(given)} texts are as many runs: fill them one at a time")
    for each in given:
        blanks.parse(each, lambda t, begins: [], None, length)  # refuses before anything is loaded
    network, text = hub.load(model_place(model), device=device)
    network.eval()
    templates = [blanks.parse(each, text.encode, text.start_id, length) for each in given]
    chosen = chosen_decoder(decoder, temperature, top_p)
    attention = FULL if network.attention.kind == "leader" else network.attention
    filled, costs = [], []
    for number, (template, source) in enumerate(zip(templates, given, strict=True)):
        choices = list(template.rows(network.mask_id))
        rows = [torch.tensor(row, dtype=torch.long, device=device) for _, row in choices]
        best, scores, search = 0, [None], {"forwards": 0, "seconds": 0.0}
        if len(rows) > 1:
            canvas = Canvas.filling(rows, network.mask_id, row_seeds([seed + number] * len(rows), len(rows)), attention)
            began = time.perf_counter()
            search = run(network, text, canvas, chosen, cache, block, steps, [], True, guide=guide)
            scores = fit(network, canvas, seed)
            search |= {"forwards": search["forwards"] + DRAWS, "seconds": time.perf_counter() - began}
            best = min(range(len(scores)), key=scores.__getitem__)
        canvas = Canvas.filling(rows[best : best + 1], network.mask_id, row_seeds(seed + number, 1), attention)
        title = [source.split("\n")[0][:60]]
        costs.append(run(network, text, canvas, chosen, cache, block, steps, title, json, record, guide))
        for name in ("forwards", "seconds"):
            costs[-1][name] += search[name]
        lengths = choices[best][0]
        whole, parts = spelled(Spelling(text), canvas.rows()[0].tolist(), template, lengths)
        filled.append({"text": whole, "blanks": parts, "lengths": list(lengths), "bound": scores[best]})
    total = {name: sum(cost[name] for cost in costs) for name in ("forwards", "tokens", "seconds")}
    shared = {name: costs[0][name] for name in ("cache", "block", "steps", "guide")}
    if json or not sys.stdout.isatty():
        result(
            {"model": model, "decoder": decoder, **shared, **total, "filled": filled}, json, [f["text"] for f in filled]
        )


def spelled(
    spelling: Spelling, row: list[int], template: blanks.Template, lengths: tuple[int, ...]
) -> tuple[str, list[str]]:
    """The whole text without special tokens, and what stands in each blank."""
    parts, at = [], 0
    for piece, length in zip(template.pieces, lengths, strict=False):
        at += len(piece)
        parts.append(spelling.between(row, at, at + length))
        at += length
    return spelling.text.decode(row), parts


def tokens(text: Text, prompt: str, chat: bool) -> list[int]:
    """A prompt as the model was trained to begin."""
    if chat:
        return text.chat([{"role": "user", "content": prompt}])
    return ([] if text.start_id is None else [text.start_id]) + text.encode(prompt)


def chosen_decoder(name: str, temperature: float | None, top_p: float | None) -> Decoder:
    """A decoder by its spec, with the flags put over it."""
    from dataclasses import replace

    from .. import spec

    flags = {"temperature": temperature, "top_p": top_p}
    return replace(spec.build("decoders", name), **{k: v for k, v in flags.items() if v is not None})


@dataclass(frozen=True)
class Recording:
    """Where a run is recorded, and what it is called there."""

    path: Path
    statistics: bool
    model: str
    decoder: str


def recording(
    trace: str | None, statistics: bool, model: str, decoder: str, temperature: float | None, top_p: float | None
) -> Recording | None:
    """What --trace asks for, refused before anything is loaded."""
    if trace is None:
        if statistics:
            raise ValueError("--statistics adds to a trace: say where it goes with --trace FILE")
        return None
    path = Path(trace)
    if path.exists():
        raise ValueError(f"{trace} is there already: give the trace another name")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to put the trace in")
    flags = {"temperature": temperature, "top_p": top_p}
    name, _, options = decoder.partition("(")
    parts = [options.strip().removesuffix(")"), *(f"{k}={v}" for k, v in flags.items() if v is not None)]
    inside = ", ".join(part for part in parts if part)
    return Recording(path, statistics, model, f"{name}({inside})" if inside else name)


def run(
    network: Denoiser,
    text: Text,
    canvas: Canvas,
    decoder: Decoder,
    cache: str | None,
    block: int | None,
    steps: int | None,
    titles: list[str],
    quiet: bool,
    record: Recording | None = None,
    guide: str | None = None,
    view: Callable[[Iterator[Frame]], Iterator[Frame]] | None = None,
) -> dict:
    """Finish a canvas, shown live where there is a terminal; what it took.

    `view` chooses what is shown of each frame; the run is over when it has no more.
    """
    from rich.console import Console

    from ..sample import denoise
    from ..watch.frames import frames
    from ..watch.terminal import play

    look = canvas.attention or network.attention
    cache = cache or look.cache
    block = look.block if block is None else block
    chosen = {"cache": cache, "block": block, "steps": steps, "guide": guide}
    blanks_in_all, began = int((~canvas.given).sum()), time.perf_counter()
    live = not quiet and sys.stdout.isatty()
    if live or record or view:
        shown = frames(network, canvas, decoder, statistics=record is not None and record.statistics, **chosen)
        if record:
            shown = recorded(shown, canvas, record, chosen)
        shown = view(shown) if view else shown
        play(shown, text, Console(quiet=not live), titles=titles)
    else:
        deque(denoise(network, canvas, decoder, **chosen), maxlen=0)
    seconds = time.perf_counter() - began
    left = int(((canvas.tokens == canvas.mask_id) & ~canvas.given).sum())
    spent = {"forwards": canvas.forwards, "tokens": blanks_in_all - left, "seconds": round(seconds, 4)}
    return {**chosen, **spent}


def recorded(shown: Iterator[Frame], canvas: Canvas, record: Recording, chosen: dict) -> Iterator[Frame]:
    """The same frames, written to the trace as they come."""
    from ..watch.trace import Header
    from ..watch.trace import record as write

    place = str(Path(record.model).resolve()) if Path(record.model).is_dir() else record.model
    header = Header.of(canvas, model=record.model, tokenizer=place, decoder=record.decoder, **chosen)
    return write(shown, record.path, header)
