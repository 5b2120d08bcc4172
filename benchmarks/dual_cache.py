"""Threshold decoding with a dual cache against the plain sampler on one long canvas; random weights, equal tokens."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from measure import RESULTS, Report, threads, timed
from study.passes import Plain, Task, Watched
from study.shapes import SHAPES, network, parameters

from unveil.attention import FULL
from unveil.sample import generate

NOTE = "speed only: random weights, so a threshold commits one token a pass and the gain is the cache's alone"


def several(work: Callable[[], object], repeats: int) -> list[float]:
    return [timed(work) for _ in range(repeats)]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2.5-0.5B")
    parser.add_argument("--vocabulary", type=int, default=126_464)
    parser.add_argument("--positions", type=int, default=512, help="of the whole canvas")
    parser.add_argument("--length", type=int, default=64, help="positions written")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    threads(given.threads)
    net = network(replace(SHAPES[given.shape], vocab=given.vocabulary), FULL)
    dice = torch.Generator().manual_seed(0)
    prompt = torch.randint(given.vocabulary - 1, (1, given.positions - given.length), generator=dice)
    # The plain sampler does the same work in every step, so a few steps on the same canvas tell its pace.
    few = Task(torch.randint(given.vocabulary - 1, (1, given.positions - 1), generator=dice), 1, 1, 1)
    plain = several(Plain(net, few).run, given.repeats + 1)[1:]
    watched, seconds = Watched(net), []
    for _ in range(given.repeats):
        began = time.perf_counter()
        generate(watched, prompt, given.length, "threshold", cache="dual", block=given.block, seed=0)
        seconds.append(time.perf_counter() - began)
    passes = len(watched.passes) // given.repeats
    each = median(seconds) / given.length
    found = {
        "note": NOTE,
        "parameters": parameters(net),
        "plain_seconds_per_token": plain,
        "ours_seconds_per_token": [s / given.length for s in seconds],
        "passes": passes,
        "ratio": median(plain) / each,
    }
    report = Report("dual_cache", given.results)
    title = (
        f"{given.shape} with {given.vocabulary:,} tokens, {parameters(net) / 1e6:.0f} M parameters, "
        f"{given.positions} positions, {given.length} to write in blocks of {given.block}; {NOTE}"
    )
    report.table(
        title,
        ("sampler", "s per token", "tokens/s", "tokens per pass", "times"),
        [
            ("plain: everything recomputed, float64 vocabulary", median(plain), 1 / median(plain), 1.0, "1.0x"),
            ("threshold, dual cache", each, 1 / each, given.length / passes, f"{found['ratio']:.1f}x"),
        ],
    )
    report.write(found)


if __name__ == "__main__":
    main()
