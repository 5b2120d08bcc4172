"""Adaptation of one parent by every arm, at equal tokens: bounds, autoregressive drift, infilling, generated text."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from measure import RESULTS, ROOT, Report, put, stamp, threads
from rich.console import Console
from study.arms import ARMS, USUAL, Plan, jobs, place, run, shard
from study.page import Study, figure, numbers, show

SHARED = ROOT.parent / "shared" / "data"
WORK = Path(os.environ.get("UNVEIL_CACHE", "~/.cache/unveil")).expanduser() / "bench"

COUNTS = ("steps", "rows", "length", "windows", "draws", "curve_every", "infills", "samples")


def missing(plan: Plan) -> list[str]:
    """What the plan names by its full path and is not there."""
    given = {"--parent": (plan.parent,), "--data": plan.data, "--eval-data": plan.eval_data}
    places = [(option, name) for option, names in given.items() for name in names if name.startswith("/")]
    return [f"{option} {name}" for option, name in places if not Path(name).exists()]


def part(words: str) -> tuple[int, int]:
    """ "2/4" to process 1 of 4, counted from 0."""
    number, _, count = words.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected i/n with i from 1 to n, got {words!r}")
    return int(number) - 1, int(count)


def work(
    plan: Plan,
    names: Sequence[str],
    seeds: int,
    folder: Path,
    number: int,
    count: int,
    console: Console,
    models: Path | None,
) -> None:
    """Run what is missing of this process's part; every finished run is kept, so that a killed study goes on."""
    mine = [job for job in shard(jobs(names, seeds, plan, folder), number, count) if not job[2].exists()]
    for index, (name, seed, path) in enumerate(mine, 1):
        console.print(f"[{index}/{len(mine)}] {name}, seed {seed}", markup=False, highlight=False)
        found = run(name, seed, plan, models)
        put(path, json.dumps({**found, **stamp()}) + "\n")
        score = found["score"]
        said = f"{score['nats']:.4f} +- {score['stderr']:.4f} nats ({score['kind']}), {found['seconds']:.0f} s"
        console.print(f"    {said}", markup=False, highlight=False)


def collected(plan: Plan, names: Sequence[str], seeds: int, folder: Path) -> dict[str, list[dict]]:
    """The finished runs by arm."""
    places = {name: [place(folder, plan, name, seed) for seed in range(seeds)] for name in names}
    found = {name: [json.loads(path.read_text()) for path in every if path.exists()] for name, every in places.items()}
    return {name: every for name, every in found.items() if every}


def main(words: Sequence[str] | None = None) -> None:
    usual = Plan(
        parent=str(SHARED / "stories260K"),
        data=(str(SHARED / "text" / "stories260K_samples.txt.xz"),),
        eval_data=(str(SHARED / "text" / "tinystories_first1000.json"),),
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="A", help="of the parent, in the names of the result files")
    parser.add_argument("--parent", default=usual.parent, help="folder or hub id of an autoregressive checkpoint")
    parser.add_argument("--data", action="append", help="text to adapt to, as unveil adapt takes it; may be repeated")
    judged = "text to judge on, likewise; without it, and with --data, the part held out of that"
    parser.add_argument("--eval-data", action="append", help=judged)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=USUAL)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shard", type=part, default=(0, 1), metavar="i/n", help="do the i-th of n equal parts")
    parser.add_argument("--report", action="store_true", help="run nothing: collect what is finished")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK, help="folder of finished runs")
    parser.add_argument("--models", type=Path, help="a folder to keep the trained models in, as NAME-SEED")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, help="default: docs/adaptation-NAME.png")
    for name in COUNTS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(usual, name))
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default=usual.dtype, help="of training")
    parser.add_argument("--lr", type=float, default=usual.lr)
    parser.add_argument("--sample-steps", type=int, nargs="+", default=usual.sample_steps)
    parser.add_argument("--temperatures", type=float, nargs="+", default=usual.temperatures)
    given = parser.parse_args(words)
    threads(given.threads)
    plan = replace(
        usual,
        **{name: vars(given)[name] for name in (*COUNTS, "parent", "lr", "dtype")},
        data=tuple(given.data or usual.data),
        eval_data=tuple(given.eval_data or (() if given.data else usual.eval_data)),
        sample_steps=tuple(given.sample_steps),
        temperatures=tuple(given.temperatures),
    )
    number, count = given.shard
    if absent := missing(plan):
        said = f"not here: {'; '.join(absent)}; name others with these options"
        if given.data or given.parent != usual.parent:
            raise SystemExit(said)
        print(f"nothing is measured: {said}")
        return
    report = Report(f"adaptation-{given.name}", given.results)
    if not given.report:
        work(plan, given.arms, given.seeds, given.work, number, count, report.console, given.models)
        if count > 1:
            report.console.print("when all parts are done: the same command with --report instead of --shard")
            return
    runs = collected(plan, given.arms, given.seeds, given.work)
    if not runs:
        raise SystemExit(f"no run of this plan is finished in {given.work / plan.key}")
    study = Study(plan, runs)
    found = show(report, study, f"{given.name}, {plan.steps * plan.rows * plan.length / 1e6:.1f} M tokens")
    report.write(numbers(study, found))
    figure(study, given.figure or ROOT / "docs" / f"adaptation-{given.name}.png")


if __name__ == "__main__":
    main()
