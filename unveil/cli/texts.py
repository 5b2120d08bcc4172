"""`unveil texts`: statistics of one set of texts, or of two and of what lies between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .places import model_place, vacant, whole
from .reports import needs, pretty
from .say import Json, result

if TYPE_CHECKING:
    from ..evaluate.texts.compare import Compared, Described
    from ..evaluate.texts.measures import Ratio

First = Annotated[str, typer.Argument(help="Texts: .jsonl, .json, .parquet, or .txt with <|endoftext|> between them.")]
Second = Annotated[str | None, typer.Argument(help="Others to compare with; every difference is the first less them.")]
Reference = Annotated[
    list[str] | None, typer.Option(help="A corpus that embedders are fitted to; default: the texts themselves.")
]
Scorer = Annotated[str | None, typer.Option(help="An autoregressive model: adds its nats per token.")]
Tokens = Annotated[str | None, typer.Option("--tokenizer", help="A model whose tokens count; default: words.")]
Embed = Annotated[list[str] | None, typer.Option("--embedder", help="The folder of a sentence-transformers model too.")]
Field = Annotated[str | None, typer.Option(help="The text's field in rows; default: text, else completion.")]
Length = Annotated[int | None, typer.Option(help="Cut every text to so many tokens, and leave out shorter ones.")]
Paired = Annotated[bool, typer.Option(help="Text i of both continues the same prompt.")]
Limit = Annotated[int, typer.Option(help="At most so many texts a side, evenly spread.")]
Draws = Annotated[int, typer.Option(help="Resampled sets behind each interval.")]
Seed = Annotated[int, typer.Option(help="Keys the resampling.")]
Out = Annotated[str | None, typer.Option("--out", "-o", help="A folder for texts.json and texts.html.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ... for the scorer.")]
FILE = "texts.json"


def texts(
    one: First,
    other: Second = None,
    reference: Reference = None,
    scorer: Scorer = None,
    tokenizer: Tokens = None,
    embedder: Embed = None,
    field: Field = None,
    length: Length = None,
    paired: Paired = False,
    limit: Limit = 5000,
    draws: Draws = 2000,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier report in --out.")] = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Entropy, coherence, diversity and the like of texts, with intervals, and which published claims they bear out."""
    needs("unveil texts", "eval", "scipy", "sklearn")
    from .. import hub
    from ..codecs.text import Text
    from ..data import read
    from ..evaluate.texts.collection import collect
    from ..evaluate.texts.compare import compare, describe, even
    from ..evaluate.texts.embedders import fitted
    from ..evaluate.texts.scorer import surprise
    from ..folder import locate
    from ..watch.texts_page import page

    if paired and other is None:
        raise ValueError("--paired needs a second set of texts")
    place = None if out is None else vacant(out, FILE, "report", overwrite)
    text = None if tokenizer is None else Text.load(locate(model_place(tokenizer)))
    sides = [collect(each, text, field=field, length=length) for each in (one, other) if each is not None]
    if len(sides) == 2 and not paired:
        sides = list(even(*sides))
    elif len(sides) == 2 and len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{one} has {len(sides[0])} texts and {other} {len(sides[1])}: pairs need as many on both sides"
        )
    sides = [side.first(limit) for side in sides]
    corpus = (document.text for document in read(reference, field=("text", "completion"))) if reference else None
    embedders = fitted(corpus or [each for side in sides for each in side.texts], embedder or ())
    nats: list[Ratio | None] = [None] * len(sides)
    if scorer is not None:
        model, own = hub.load(model_place(scorer), device=device)
        nats = [surprise(model, own, side.texts) for side in sides]
    facts: dict[str, Any] = {
        "tokens are": f"those of {tokenizer}" if tokenizer else "words, as space divides them",
        "embedders": [each.name for each in embedders],
        "embedders fitted to": ", ".join(reference) if reference else "the texts themselves",
        "scorer": scorer,
        "cut to": length,
        "paired": paired,
        "resampled sets": draws,
    }
    if other is None:
        described = describe(sides[0], embedders, nats=nats[0], seed=seed, draws=draws)
        about, lines = {**facts, "a": plain(described)}, listed([described])
        html = page(described, None, facts)
    else:
        compared = compare(sides[0], sides[1], embedders, paired=paired, nats=nats, seed=seed, draws=draws)
        about = {**facts, **contrasted(compared)}
        lines = [*listed([compared.one, compared.other], compared), "", *told(compared)]
        html = page(compared.one, compared, facts)
    lines.append(f"embedders: {', '.join(facts['embedders'])}, fitted to {facts['embedders fitted to']}")
    if place is not None:
        about["files"] = whole(place, {FILE: pretty(about), "texts.html": html})
        lines.append(f"In {place}: {', '.join(about['files'])}")
    result(about, json, lines)


def plain(found: Described) -> dict:
    """One set for machines."""
    figures = {
        name: {"value": each.value, "low": each.low, "high": each.high, "standard_error": each.stderr}
        for name, each in found.figures.items()
    }
    sizes = {"texts": found.texts, "tokens": found.tokens, "tokens_of_ngrams": found.counted}
    return {"name": found.name, **sizes, "figures": figures}


def contrasted(found: Compared) -> dict:
    """Two sets for machines."""
    return {
        "a": plain(found.one),
        "b": plain(found.other),
        "differences": {name: dict(vars(each)) for name, each in found.differences.items()},
        "verdicts": [
            {"claim": each.claim.name, "verdict": each.word, "signs": dict(each.signs)} for each in found.verdicts
        ],
    }


def listed(sides: list[Described], compared: Compared | None = None) -> list[str]:
    """A table for people: each figure, its interval, and the difference."""
    from ..evaluate.texts.compare import title

    head = ["", *(f"{letter}: {side.name}" for letter, side in zip("AB", sides, strict=False))]
    rows = [["texts", *(f"{side.texts:,}" for side in sides)], ["tokens", *(f"{side.tokens:,}" for side in sides)]]
    if compared is not None:
        head += ["A - B", "95 %", "effect"]
        rows = [[*row, "", "", ""] for row in rows]
    for name in sides[0].figures:
        cells = [
            f"{found.value:z.3f} ({found.low:z.3f} to {found.high:z.3f})" if found else "-"
            for found in (side.figures.get(name) for side in sides)
        ]
        if compared is not None:
            less = compared.differences.get(name)
            span = [f"{less.value:+.3f}", f"{less.low:+.3f} to {less.high:+.3f}", less.size] if less else [""] * 3
            cells += span
        rows.append([title(name), *cells])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(wide) if i == 0 else cell.rjust(wide)
            for i, (cell, wide) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]


def told(found: Compared) -> list[str]:
    """The claims, and whether they hold here."""
    return ["A as compared with B:", *(f"  {each.sentence(found.differences)}" for each in found.verdicts)]
