"""Do texts of a diffusion model differ from those of an autoregressive one, and what makes them: model or decoder?"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from measure import RESULTS, Report, threads
from study.findings import ENTROPIES, Finding, findings
from study.variants import AR, BLOCKS, DECODERS, FIRST, Job, decoded, digest, from_the_left, variants

from unveil import hub
from unveil.cli.quality import judged
from unveil.codecs.text import Text
from unveil.denoiser import Denoiser
from unveil.evaluate.kinship import kinship
from unveil.evaluate.quality import corpus, passages
from unveil.evaluate.texts.collection import Collection
from unveil.evaluate.texts.compare import Described, describe
from unveil.evaluate.texts.embedders import fitted
from unveil.evaluate.texts.scorer import surprise
from unveil.folder import locate

WORK = Path(os.environ.get("UNVEIL_CACHE", "~/.cache/unveil")).expanduser() / "bench" / "differences"
REAL = "real text"
READ = 16  # real texts that are read from the left, which takes a pass a token


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ar", required=True, help="an autoregressive model")
    parser.add_argument("--dlm", required=True, help="its match: a masked model with full attention")
    parser.add_argument("--more", nargs="*", default=[], metavar="NAME=MODEL", help="others, decoded token by token")
    parser.add_argument("--data", action="append", help="real text; default: what --ar held out of its own")
    parser.add_argument("--scorer", help="an autoregressive model that judges; default: --ar, which is not independent")
    parser.add_argument("--name", default="", help="of the pair, in the names of the result files")
    parser.add_argument("--texts", type=int, default=256, help="continuations of each way to decode")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of real text that are continued")
    parser.add_argument("--length", type=int, default=64, help="tokens of a continuation")
    parser.add_argument("--blocks", type=int, nargs="+", default=list(BLOCKS))
    parser.add_argument("--rows", type=int, default=64, help="texts decoded together")
    parser.add_argument("--dtype", default="bfloat16", help="of the networks; draws are made in float64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draws", type=int, default=2000, help="resampled sets behind each interval")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of what is decoded already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    given = parsed(words)
    threads(given.threads)
    more = dict(each.split("=", 1) for each in given.more)
    text = matching(given.ar, [given.dlm, *more.values()])
    parent = hub.load_model(given.ar)
    side, named, held = judged(parent, text, given.data)
    real = passages([side.document(i) for i in range(len(side))], given.prompt, given.length, given.texts)
    report = Report(f"differences{'-' if given.name else ''}{given.name}", given.results)
    say = partial(report.console.print, markup=False, highlight=False)

    ways: dict[str, tuple[str, str, int]] = {AR: (given.ar, DECODERS["lcr"], 1)}
    ways |= {each: (given.dlm, *way) for each, way in variants(tuple(given.blocks)).items()}
    ways |= {each: (model, DECODERS["lcr"], 1) for each, model in more.items()}
    rows, took = {REAL: real.rows[:, real.first :]}, {}
    for number, (each, (model, decoder, block)) in enumerate(ways.items(), 1):
        job = Job(model, decoder, block, digest(real.prompts), given.length, given.dtype, given.seed)
        loaded = partial(load, model, given.dtype, text)
        rows[each], took[each] = decoded(job, loaded, real.prompts, given.work, given.rows)
        say(f"[{number}/{len(ways)}] {each}: {took[each]['processor_seconds']:.0f} s")

    whole, _, _ = judged(parent, text, given.data, held_out=False)
    embedders = fitted(corpus(text, (whole.document(i) for i in range(len(whole)))))
    scorer, words_of = hub.load(given.scorer or given.ar)
    kin = kinship(hub.load_model(given.dlm), scorer)
    sets: dict[str, Described] = {}
    for each, found in rows.items():
        texts = [text.decode(row) for row in found]
        nats = surprise(scorer, words_of, texts)
        made = Collection(each, texts, found.tolist())
        sets[each] = describe(made, embedders, nats=nats, draws=given.draws)
    every = findings(sets, given.blocks)
    seen = {each: from_the_left(load(place, "float32", text), real.rows[:READ], real.first)
            for each, place in {AR: given.ar, FIRST: given.dlm}.items()}  # fmt: skip
    show(report, sets, every, seen, took)
    plan = {key: value for key, value in vars(given).items() if key not in ("work", "results", "threads")}
    plan |= {each: told(plan[each]) for each in ("ar", "dlm", "scorer")} | {
        "more": {k: told(v) for k, v in more.items()}
    }
    plan["data"] = [told(each) for each in given.data or named.split(", ")]
    report.write(
        {"plan": plan, "held_out": held, "scorer": kin.sentence, **numbers(sets, every, seen, took, rows, text)}
    )


def told(place: str | None) -> str | None:
    """A model or a source by its name, without the folders of some machine."""
    return place and (Path(place).name if place.startswith("/") else place)


def matching(ar: str, others: Sequence[str]) -> Text:
    """The tokenizer that all models share. SystemExit where they do not: their tokens would not compare."""
    text = Text.load(locate(ar))
    for each in others:
        if Text.load(locate(each)).fingerprint != text.fingerprint:
            raise SystemExit(f"{each} and {ar} have different tokenizers: their tokens do not compare")
    return text


def load(place: str, dtype: str, text: Text) -> Denoiser:
    model = hub.load_model(place, dtype=dtype)
    model.eos_id = text.eos_id
    return model


def show(
    report: Report, sets: Mapping[str, Described], every: Sequence[Finding], seen: Mapping[str, dict], took: Mapping
) -> None:
    """All tables."""
    embedded = [each for each in sets[AR].figures if "/" in each]
    picked = [*ENTROPIES, *embedded, "distinct_2", "self_bleu", "cross_entropy"]
    size = sets[AR].counted
    lines = [
        [each, took[each]["forwards"] if each in took else None]
        + [found.figures[one].value if one in found.figures else None for one in picked]
        for each, found in sets.items()
    ]
    heads = ["calls", "H1", "H2", "H3", *embedded, "distinct-2", "self-BLEU", "nats of the scorer"]
    report.table(f"{sets[AR].texts} continuations, {size:,} tokens each", ["way to decode", *heads], lines)
    lines = [[each.claim, each.verdict, each.told] for each in every]
    report.table("published claims; differences with 95 % intervals", ["claim", "verdict", "measured"], lines)
    lines = [[each, found["nats"], found["entropy"]] for each, found in seen.items()]
    report.table(f"{READ} real texts, token by token", ["model", "nats per token", "expected entropy"], lines)


def numbers(
    sets: Mapping[str, Described],
    every: Sequence[Finding],
    seen: Mapping[str, dict],
    took: Mapping[str, dict],
    rows: Mapping[str, torch.Tensor],
    text: Text,
) -> dict[str, object]:
    """What the result file holds."""
    return {
        "sets": {
            each: {
                "texts": found.texts,
                "tokens": found.tokens,
                **took.get(each, {}),
                "figures": {
                    key: {"value": one.value, "low": one.low, "high": one.high} for key, one in found.figures.items()
                },
                "example": text.decode(rows[each][0]),
            }
            for each, found in sets.items()
        },
        "findings": [
            {
                "claim": each.claim,
                "verdict": each.verdict,
                "differences": {key: dict(vars(one)) for key, one in each.differences.items()},
            }
            for each in every
        ],
        "from_the_left": dict(seen),
    }


if __name__ == "__main__":
    main()
