"""`unveil quality`: how good the texts are that a model writes, at several numbers of steps and temperatures."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .measure import wanted
from .places import model_place, vacant, whole
from .reports import needs, pretty
from .say import Json, result

if TYPE_CHECKING:
    from ..codecs.text import Text
    from ..data import Packed
    from ..denoiser import Denoiser
    from ..evaluate.quality import Point, Quality
    from ..evaluate.texts.resampling import Estimate

Place = Annotated[str, typer.Argument(help="A folder, a hub id or an embedded model: it writes.")]
Scorer = Annotated[str, typer.Option(help="An autoregressive model that was trained apart from it: it judges.")]
Data = Annotated[
    list[str] | None, typer.Option(help="Real text to compare with; default: what the model was trained on, held out.")
]
Field = Annotated[str, typer.Option(help="The text's field in .jsonl and .parquet rows.")]
Held = Annotated[bool | None, typer.Option("--held-out/--all", help="Only what training holds out, or all of --data.")]
Steps = Annotated[str, typer.Option(help="Model calls for a whole text, several with commas; an AR model ignores it.")]
Heats = Annotated[str, typer.Option(help="Several with commas: figures are read off between them.")]
Decoding = Annotated[str | None, typer.Option("--decoder", "-d", help="A spec; default: random, ancestral sampling.")]
Caching = Annotated[str | None, typer.Option("--cache", "-c", help="A spec; default: causal where exact.")]
Guiding = Annotated[str | None, typer.Option("--guide", "-g", help="A spec such as eos(policy='never').")]
Block = Annotated[int | None, typer.Option(help="Positions per block; default: the model's own, or one block.")]
Count = Annotated[int, typer.Option(help="Texts for each number of steps and temperature.")]
Prompt = Annotated[int, typer.Option(help="Tokens of real text to go on from; 0: write from nothing.")]
Length = Annotated[int, typer.Option("--length", "-l", help="Tokens to write.")]
Embed = Annotated[list[str] | None, typer.Option("--embedder", help="The folder of a sentence-transformers model too.")]
Seed = Annotated[int, typer.Option(help="Keys every random choice.")]
Out = Annotated[str | None, typer.Option("--out", "-o", help="A folder for quality.json, .html, .png and the texts.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Numbers = Annotated[str | None, typer.Option(help="Of the model that writes: float32, bfloat16, ...")]
FILE = "quality.json"
HEAD = ("steps", "T", "calls", "gen. perplexity", "entropy", "distinct-2", "self-BLEU", "MAUVE-style", "tokens")


def quality(
    model: Place,
    scorer: Scorer,
    data: Data = None,
    field: Field = "text",
    held_out: Held = None,
    steps: Steps = "8,16,32,64",
    temperatures: Heats = "0.7,0.85,1.0",
    decoder: Decoding = None,
    cache: Caching = None,
    guide: Guiding = None,
    block: Block = None,
    count: Count = 64,
    prompt: Prompt = 0,
    length: Length = 96,
    embedder: Embed = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier report in --out.")] = False,
    device: Device = "cpu",
    dtype: Numbers = None,
    json: Json = False,
) -> None:
    """Generative perplexity under another model, never without entropy; variety, and likeness to real text."""
    needs("unveil quality", "eval", "scipy", "sklearn")
    from .. import __version__, hub, spec
    from ..choices import with_options
    from ..evaluate.kinship import kinship
    from ..evaluate.problems import Setting
    from ..evaluate.quality import Judge, Passages, Point, Quality, corpus, passages, ways, written
    from ..evaluate.texts.embedders import fitted
    from ..evaluate.unfinished import FILE as KEPT
    from ..evaluate.unfinished import Unfinished, files
    from ..folder import locate
    from ..sample import writer
    from ..watch.quality_page import page

    calls, heats = numbers(steps, "steps"), [float(each) for each in numbers(temperatures, "temperatures", whole=False)]
    place = None if out is None else vacant(out, FILE, "report", overwrite)
    network, text = hub.load(model_place(model), device=device, dtype=dtype)
    judge, own = hub.load(model_place(scorer), device=device)
    causal = network.attention.kind == "causal"
    decoder = decoder or ("confidence" if causal else "random")
    spec.build("decoders", with_options(decoder, temperature=1.0))
    side, named, held = judged(network, text, data, field, held_out)
    if prompt == 0 and text.start_id is None:
        raise ValueError("the tokenizer has no beginning-of-text token to write from: give --prompt some tokens")
    documents = [side.document(i) for i in range(len(side))]
    real = passages(documents, prompt, length, count)
    kin = kinship(network, judge)
    network = writer(network)
    look = network.attention
    plain = Setting(decoder, cache or look.cache, guide, 1 if causal else look.block if block is None else block)
    todo = ways(network, real, decoder, plain, [int(each) for each in calls], heats)
    if few := [str(int(each)) for each in calls if not causal and each not in {one for one, _, _ in todo}]:
        print(f"left out: {', '.join(few)} model calls are too few for all blocks", file=sys.stderr)
    asked = {"model": model, "data": named, "held_out": held, "count": len(real.rows), "prompt": prompt}
    asked |= {
        "length": length,
        "seed": seed,
        "device": device,
        "version": __version__,
        "checkpoint": files(locate(model)),
    }
    kept = Unfinished(place and place / KEPT, asked)
    if known := kept.resume(discard=overwrite):
        print(f"going on with {known} sets of texts that an earlier run wrote", file=sys.stderr)
    bench = Judge(text, judge, own, fitted(corpus(text, documents), embedder or ()), real)
    points = []
    for number, (each, heat, setting) in enumerate(todo, 1):
        found = kept.of("texts", setting)
        if "rows" not in found:
            told = "" if each is None else f" in {each} model calls"
            print(f"[{number}/{len(todo)}] {len(real.rows)} texts at temperature {heat:g}{told}", file=sys.stderr)
            made, forwards = written(network, real, setting, seed)
            found |= {"rows": made.rows.tolist(), "forwards": forwards}
            kept.keep()
        made = Passages(real.rows.new_tensor(found["rows"]), real.first)
        points.append(Point(each, heat, found["forwards"], bench.figures(made), bench.told(made)))
    done = Quality(bench.figures(real), points)
    facts = {
        "model": model,
        "scorer": f"{scorer}, {kin.sentence}",
        "real text": f"{named}{', held out' if held else ''}",
        "texts": f"{len(real.rows)} of {length} tokens, {f'after {prompt} given' if prompt else 'from nothing'}",
        "decoder": decoder,
        "block": plain.block,
        "cache": plain.cache,
        "guide": guide,
        "embedders": ", ".join(each.name for each in bench.embedders),
    }
    about = {**facts, "independent": kin.independent, "weights_correlate": kin.correlation, **machine(done)}
    lines = [*table(done), "", *matched(done), "", f"scorer: {facts['scorer']}"]
    if place is not None:
        texts = "".join(line(point) for point in points)
        html = page(done, facts)
        about["files"] = whole(place, {FILE: pretty(about), "quality.html": html, "texts.jsonl": texts} | picture(done))
        lines.append(f"In {place}: {', '.join(about['files'])}")
    result(about, json, lines)


def judged(
    network: Denoiser, text: Text, data: list[str] | None, field: str = "text", held_out: bool | None = None
) -> tuple[Packed, str, bool]:
    """Real text, its name, and whether training held it out. ValueError where a model was trained on conversations."""
    from ..data import prepare
    from ..nn.grow import bare

    ours = bare(network).config.get("unveil") or {}
    sources, held, sides = wanted(ours, data, held_out)
    named = ", ".join(sources)
    if ours.get("chat") and not data:
        raise ValueError(f"{named} are conversations; expected plain text to compare with: name it by --data")
    corpus = prepare(sources, text, field=field, close=ours.get("close", True), **sides)
    return corpus.held_out if held else corpus.train, named, held


def numbers(words: str, name: str, whole: bool = True) -> list[float]:
    """Numbers with commas between them."""
    try:
        found = [float(each) for each in words.split(",")]
    except ValueError:
        found = []
    good = (
        [each for each in found if each >= 1 and each == int(each)] if whole else [each for each in found if each > 0]
    )
    if not found or good != found:
        kind = "whole numbers from 1 on" if whole else "numbers above 0"
        raise ValueError(f"{name} is {words!r}; expected {kind} with commas between them")
    return list(dict.fromkeys(found))


def line(point: Point) -> str:
    """The texts of a point as rows, as `unveil texts` reads them."""
    import json

    about = {"steps": point.steps, "temperature": point.temperature}
    return "".join(json.dumps({"text": text, **about}, ensure_ascii=False) + "\n" for text in point.texts)


def picture(found: Quality) -> dict[str, bytes]:
    """The plot, where matplotlib is installed."""
    from ..watch.quality_plot import png

    try:
        return {"quality.png": png(found)}
    except ModuleNotFoundError:
        print("no quality.png: matplotlib is not installed (pip install 'unveil[plot]')", file=sys.stderr)
        return {}


def spread(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def machine(found: Quality) -> dict:
    """All figures for machines."""
    from ..evaluate.quality import MATCHED

    return {
        "real": {name: spread(each) for name, each in found.real.items()},
        "points": [
            {
                "steps": point.steps,
                "temperature": point.temperature,
                "forwards": point.forwards,
                "generative_perplexity": point.perplexity,
                "figures": {name: spread(each) for name, each in point.figures.items()},
            }
            for point in found.points
        ],
        "at_the_entropy_of_real_text": [
            {"steps": steps, **{name: found.matched(steps, name) for name in [*MATCHED, *styles(found)]}}
            for steps in found.steps
        ],
    }


def styles(found: Quality) -> list[str]:
    return [name for name in found.points[0].figures if name.startswith("mauve_style/")]


def table(found: Quality) -> list[str]:
    """For people: what was written, and real text."""
    rows: list[tuple[str, ...]] = [HEAD]
    for point in found.points:
        made = point.figures
        likeness = " ".join(f"{made[name].value:.3f}" for name in styles(found))
        rows.append(
            (
                "-" if point.steps is None else str(point.steps),
                f"{point.temperature:g}",
                str(point.forwards),
                f"{point.perplexity:.1f}",
                *(cell(made.get(name)) for name in ("entropy", "distinct_2", "self_bleu")),
                likeness,
                cell(made.get("length"), 0),
            )
        )
    real = found.real
    figures = (cell(real.get(name)) for name in ("entropy", "distinct_2", "self_bleu"))
    rows.append(("real", "", "", f"{math.exp(real['nats'].value):.1f}", *figures, "", cell(real.get("length"), 0)))
    return columns(rows)


def matched(found: Quality) -> list[str]:
    """For people: perplexities that compare."""
    entropy = found.real["entropy"].value
    rows: list[tuple[str, ...]] = [("steps", "gen. perplexity", "distinct-2", "self-BLEU", "MAUVE-style")]
    for steps in found.steps:
        nats = found.matched(steps, "nats")
        figures = [found.matched(steps, name) for name in ("distinct_2", "self_bleu")]
        likeness = [found.matched(steps, name) for name in styles(found)]
        cells = ["out of reach" if each is None else f"{each:.3f}" for each in figures]
        last = " ".join("-" if each is None else f"{each:.3f}" for each in likeness)
        shown = "out of reach" if nats is None else f"{math.exp(nats):.1f}"
        rows.append(("-" if steps is None else str(steps), shown, *cells, last))
    return [f"at the entropy of real text, {entropy:.3f} nats, read between temperatures:", *columns(rows)]


def cell(found: Estimate | None, digits: int = 3) -> str:
    return "-" if found is None else f"{found.value:.{digits}f}"


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(word.rjust(wide) for word, wide in zip(row, widths, strict=True)) for row in rows]
