"""`unveil harness`: lm-evaluation-harness with any of our models, by its own options."""

from __future__ import annotations

import importlib.util
import json as notation
import os
import sys
import tempfile
from pathlib import Path

import typer

from .launch import Processes, launched
from .say import Json, result

KEPT = ("results", "groups", "config", "configs", "versions", "n-shot", "n-samples", "higher_is_better")
PLACES = ("--output_path", "-o")


def harness(context: typer.Context, nproc: Processes = 1, json: Json = False) -> None:
    """Measure with lm-evaluation-harness: everything but --nproc and --json is handed to its own command line.

    --model unveil is what it gets unless another model is named. Options of our models go into --model_args, such as
    pretrained=MODEL mode=bound draws=32 decoder='threshold(tau=0.9)'. See docs/harness.md.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("lm-evaluation-harness is not installed: pip install 'unveil[eval]'")
    if launched(nproc, 0):
        return
    from ..evaluate.harness import main

    words, was = list(context.args), list(sys.argv)
    with tempfile.TemporaryDirectory() as spare:
        places = [words[i + 1] for i, word in enumerate(words[:-1]) if word in PLACES]
        places += [word.partition("=")[2] for word in words if word.startswith("--output_path=")]
        if json and not places:
            words += ["--output_path", spare]
        try:
            main(words)
        except ValueError as error:  # the harness refused something
            raise ValueError(" ".join(str(error).split())) from error
        finally:
            sys.argv = was
        if json and os.environ.get("RANK", "0") == "0":  # the first of several processes has all results
            result(told(Path(places[-1] if places else spare)), True)


def told(place: Path) -> dict:
    """What the harness wrote last, less what it says of the machine."""
    found = sorted(place.parent.rglob("*results_*.json") if place.suffix == ".json" else place.rglob("results_*.json"))
    if not found:
        raise ValueError("lm-evaluation-harness wrote no results: nothing was measured")
    latest = max(found, key=lambda path: path.stat().st_mtime)
    whole = notation.loads(latest.read_text(encoding="utf-8"))
    return {name: whole[name] for name in KEPT if name in whole}
