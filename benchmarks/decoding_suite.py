"""Every decoder and cache on the trained task models: `unveil bench` for each model and task, and its tables."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import RESULTS, ROOT, Report

WORK = Path(os.environ.get("UNVEIL_CACHE", "~/.cache/unveil")).expanduser() / "bench" / "decoding"
FULL = (
    "random;confidence;margin;entropy;origin(kind='entropy');first_hitting;threshold;threshold(tau=0.7);"
    "threshold(extrapolate=True);factor;frechet;entropy_bound;klass;credit;hierarchy;prophet;"
    "prophet(inner='threshold');saber;saber(mu=2.0);saber(take_back=False);wino;edit;ahd;ahd(guard_end=True);tspd;"
    "focore;focore(adaptive=True);focore(hide='random')"
)
STRICT = (
    "threshold(tau=0.97);threshold(tau=0.99);threshold(tau=0.99, extrapolate=True);factor(f=0.3);frechet(delta=0.8);"
    "entropy_bound(gamma=0.01);credit(tau=0.99);hierarchy(low=0.97, high=0.99);klass(tau=0.97, epsilon=0.001);"
    "ahd(tau=0.99);wino(tau1=0.97);edit(tau=0.97, edit=0.97);focore(adaptive=True, tau=0.97);"
    "prophet(region='blank', high=20.0, mid=15.0, low=12.0)"
)
LEADER = (
    "threshold;threshold(tau=0.7);threshold(extrapolate=True);factor;frechet;entropy_bound;klass;credit;hierarchy;"
    "prophet;saber;edit;tspd;speculative"
)
SABER = (
    "saber(n=1);saber(n=3);saber(mu=4.0);saber(remask='drop_token');saber(remask='low_prob');"
    "saber(n=1, level=0.97);saber(n=1, level=0.99);saber(level=0.99)"
)
PROPHET = (
    "prophet(region='blank', high=9.0, mid=8.0, low=7.0);prophet(region='blank', high=11.0, mid=10.0, low=9.0);"
    "prophet(region='blank', high=13.0, mid=12.0, low=11.0);prophet(region='blank', high=9.556, mid=9.488, low=7.444)"
)  # the last as `unveil calibrate prophet` fits it with an agreement of 0.99
LEVELS = (
    "threshold;threshold(tau=0.97);threshold(tau=0.99);threshold(tau=0.997);factor(f=0.3);factor(f=0.1);"
    "entropy_bound(gamma=0.01);credit(tau=0.99);hierarchy(low=0.97, high=0.99);klass(tau=0.97, epsilon=0.001);"
    "saber;saber(n=1);saber(n=1, level=0.99);prophet(region='blank', high=11.0, mid=10.0, low=9.0);"
    "edit(tau=0.99, edit=0.99);speculative"
)
LONG = (
    "threshold;threshold(tau=0.99);threshold(extrapolate=True);factor;entropy_bound;klass;credit;prophet;saber;"
    "saber(n=1);wino;ahd;ahd(tau=0.99);tspd;focore;focore(adaptive=True)"
)
CHAINS_LEADER = (
    "threshold;threshold(tau=0.99);threshold(extrapolate=True);factor;klass;credit;prophet;saber;saber(n=1);"
    "edit(tau=0.99, edit=0.99);speculative"
)
CHAINS_STRICT = (
    f"{STRICT};saber(n=1, level=0.97);saber(n=1, level=0.99);saber(level=0.99);"
    "prophet(region='blank', high=11.0, mid=10.0, low=9.0);prophet(region='blank', high=13.0, mid=12.0, low=11.0)"
)
CHAINS_SUREST = (
    "threshold(tau=0.997);threshold(tau=0.999);threshold(tau=0.997, extrapolate=True);saber(n=1, level=0.997);"
    "saber(n=1, level=0.999);credit(tau=0.997);factor(f=0.1);ahd(tau=0.997)"
)
CACHED = "confidence;threshold;ahd"
CHAINS = "arithmetic(least=9, most=9, largest=5, length=84)"
SIMILAR = "infill(judge='similarity')"
BODIES = "infill(lines=8, judge='similarity')"
CLOZE = "cloze(data={data!r})"
MIDDLES = "story_infill(data={data!r}, asked=5)"
COLUMNS = ("way to decode", "quality, %", "95 %", "less vanilla", "forwards", "tokens a forward", "tokens/s", "speed")


GUIDE = "unconditional(scale=0.5)"
KEPT = "prefix;dual;delayed;features"
PICTURES = ("sudoku-full", "strict-full", "sudoku-leader")  # shown on the page


@dataclass(frozen=True)
class Job:
    """One bench."""

    model: str  # which of the given models
    task: str  # {data} stands for the given file
    block: int
    decoders: str
    caches: str
    about: str
    guide: str = ""


JOBS = {
    "sudoku-full": Job("full", "sudoku", 10, FULL, "recompute", "4 x 4 Sudoku, full attention"),
    "strict-full": Job("full", "sudoku", 10, STRICT, "recompute", "4 x 4 Sudoku, full attention, levels near 1"),
    "guided-full": Job("full", "sudoku", 10, "threshold", "recompute", "4 x 4 Sudoku, full attention, guided", GUIDE),
    "caches-full": Job(
        "full",
        "sudoku",
        10,
        "confidence;threshold;frechet",
        KEPT,
        "4 x 4 Sudoku, full attention, every cache",
    ),
    "sweep-full": Job("full", "sudoku", 10, f"{SABER};{PROPHET}", "recompute", "4 x 4 Sudoku, Saber and Prophet swept"),
    "sweep-leader": Job("leader", "sudoku", 9, LEVELS, "causal", "4 x 4 Sudoku, leader, levels near 1"),
    "sudoku-leader": Job("leader", "sudoku", 9, LEADER, "causal", "4 x 4 Sudoku, leader"),
    "chains-full": Job("full", CHAINS, 28, LONG, "recompute", "Chains of nine sums, full attention"),
    "chains-strict": Job("full", CHAINS, 28, CHAINS_STRICT, "recompute", "Chains of nine sums, levels near 1"),
    "chains-surest": Job("full", CHAINS, 28, CHAINS_SUREST, "recompute", "Chains of nine sums, levels nearer to 1"),
    "chains-guided": Job("full", CHAINS, 28, "threshold", "recompute", "Chains of nine sums, guided", GUIDE),
    "chains-caches": Job("full", CHAINS, 28, CACHED, KEPT, "Chains of nine sums, every cache"),
    "chains-leader": Job("leader", CHAINS, 9, CHAINS_LEADER, "causal", "Chains of nine sums, leader"),
    "functions": Job("full", "infill", 32, LONG, "recompute", "A statement of a held-out function"),
    "functions-caches": Job("full", "infill", 32, CACHED, KEPT, "A statement of a held-out function, every cache"),
    "functions-similar": Job(
        "full", SIMILAR, 32, LONG, "recompute", "A statement of a held-out function, by similarity"
    ),
    "bodies": Job("full", BODIES, 32, LONG, "recompute", "Eight lines of a held-out function, by similarity"),
    "cloze": Job("full", CLOZE, 32, LONG, "recompute", "Story cloze"),
    "middles": Job("full", MIDDLES, 32, LONG, "recompute", "Five sentences in the middle of a story"),
    "middles-caches": Job("full", MIDDLES, 32, CACHED, KEPT, "Five sentences in the middle of a story, every cache"),
}
GRIDS = [name for name, job in JOBS.items() if job.task == "sudoku"]  # the others want models of their own


def run(name: str, job: Job, given: argparse.Namespace, more: str) -> None:
    """The bench in a process of its own, kept in the work folder."""
    models = {"full": given.full, "leader": given.leader}
    words = [sys.executable, "-m", "unveil", "bench", models[job.model], "--task", job.task.format(data=given.data)]
    words += ["--block", str(job.block), "--decoders", job.decoders + more, "--caches", job.caches]
    words += ["--count", str(given.count), "--seeds", str(given.seeds), "--timed", str(given.timed)]
    words += ["--runs", str(given.runs), "--out", str(given.work / name), "--overwrite"]
    words += ["--dtype", given.dtype] if given.dtype else []
    words += ["--guide", job.guide] if job.guide else []
    words += ["--ar", given.ar] if job.model == "full" and given.ar else []
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def table(report: Report, name: str, found: dict) -> None:
    """The figures of one bench, best quality first within a role."""
    rows = []
    for one in found["measured"]:
        quality, less = one["quality"], one["difference"]
        told = [
            f"{100 * quality['mean']:.1f}",
            f"{100 * quality['low']:.1f} to {100 * quality['high']:.1f}",
            f"{100 * less['mean']:+.1f} ({100 * less['low']:+.1f} to {100 * less['high']:+.1f})",
        ]
        rows.append(
            (one["name"], *told, one["forwards"], one["tokens_per_forward"], one["tokens_per_second"])
            + (f"{one['over_vanilla']:.2f}x",)
        )
    job = JOBS[name]
    computed = f"{found['threads']} thread(s), {found.get('dtype', 'float32')}"
    title = f"{job.about}: {found['problems']}, blocks of {job.block}, temperature 0, {computed}"
    report.table(title, COLUMNS, rows)
    report.pages.append(f"Advice of the command: *{found['advice']}*\n")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", help="a full-attention model of the recipe tasks-full")
    parser.add_argument("--leader", help="a leader model of the recipe tasks-leader")
    parser.add_argument("--ar", help="their parent, for autoregressive decoding beside")
    parser.add_argument("--sensor", help="a sensor of `unveil calibrate tspd` for the model on Sudoku or chains")
    parser.add_argument("--prophet", help="a spec from `unveil calibrate prophet` for the same")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=GRIDS)
    parser.add_argument("--data", help="stories, for the jobs that ask in them")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--timed", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", help="what is computed in; default: float32")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--name", default="decoding", help="of the two files of results")
    parser.add_argument("--report", action="store_true", help="run nothing: collect what is finished")
    given = parser.parse_args(words)
    own = [f"tspd(sensor={given.sensor!r})"] * bool(given.sensor)
    own += [given.prophet] * bool(given.prophet)
    strict = [f"tspd(sensor={given.sensor!r}, theta=0.97)"] * bool(given.sensor)
    fitted = {"sudoku-full": own, "strict-full": strict, "chains-full": own + strict, "chains-leader": own + strict}
    report, found = Report(given.name, given.results), {}
    for name in given.jobs:
        job, place = JOBS[name], given.work / name
        if not given.report and getattr(given, job.model) is None:
            parser.error(f"the job {name} wants --{job.model}")
        if not given.report and "{data" in job.task and given.data is None:
            parser.error(f"the job {name} wants --data")
        if not given.report:
            more = "".join(f";{each}" for each in fitted.get(name, []))
            run(name, job, given, more)
        if not (place / "bench.json").exists():
            continue
        told = json.loads((place / "bench.json").read_text())
        told["task"] = job.task.format(data=given.data and Path(given.data).name)
        for key in ("model", "autoregressive model"):
            told[key] = told[key] and Path(told[key]).name
        found[name] = told
        table(report, name, told)
        if name in PICTURES:
            shutil.copyfile(place / "pareto.png", ROOT / "docs" / f"decoding-{name}.png")
    if not found:
        raise SystemExit(f"no bench is finished in {given.work}")
    report.write({"benches": found})


if __name__ == "__main__":
    main()
