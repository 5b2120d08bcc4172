"""What adapted models keep of their parent: every task, with intervals, beside the parent on the same items."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report, threads

from unveil import hub, spec
from unveil.evaluate.intervals import DRAWS, resampled
from unveil.evaluate.suite import Candidate, How, Result, evaluate, items, refusal
from unveil.evaluate.unfinished import Unfinished, files
from unveil.evaluate.versus import Line, lines
from unveil.folder import locate
from unveil.tasks import Published

WORK = Path(os.environ.get("UNVEIL_CACHE", "~/.cache/unveil")).expanduser() / "bench" / "retention"
TASKS = ("hellaswag", "piqa", "siqa", "winogrande", "arc_easy", "lambada", "wikitext(most=600)", "story_infill")
CHOICES = ("hellaswag", "piqa", "siqa", "winogrande", "arc_easy")  # whose mean is the published figure of retention


@dataclass(frozen=True)
class Entrant:
    """A model and how its options are weighed."""

    name: str
    place: str
    mode: str = "auto"

    @classmethod
    def of(cls, text: str) -> Entrant:
        """NAME=FOLDER, or NAME=FOLDER@exact for the autoregressive mode of a model that has one."""
        name, found, place = text.partition("=")
        if not found or not name or not place:
            raise ValueError(f"expected NAME=FOLDER, got {text!r}")
        place, _, mode = place.partition("@")
        return cls(name, place, mode or "auto")


def placed(tasks: Sequence[str], folder: str | None, stories: str | None, text: str | None) -> dict[str, Any]:
    """Tasks by their specs, with where their files are."""
    made = {}
    for name in tasks:
        task = spec.build("tasks", name)
        here = {"story_infill": stories, "wikitext": text}.get(name.split("(")[0], folder)
        made[name] = replace(task, data=here) if isinstance(task, Published) and not task.data and here else task
    return made


def row(found: dict[str, Result], base: str, name: str) -> dict[str, Line]:
    """The main figure of an entrant at one task, beside that of the first."""
    one, other = found.get(name), found.get(base)
    if one is None:
        return {}
    return {line.figure: line for line in lines([one], [other] if other and name != base else None) if not line.kind}


def kept(found: dict[str, dict[str, Result]], base: str, name: str) -> tuple[float, float, float] | None:
    """The mean accuracy over the multiple-choice tasks as a share of the first's, and its interval: items of each task
    drawn again, the same for both."""
    pairs = [
        (found[task][name].values("accuracy"), found[task][base].values("accuracy"))
        for task in CHOICES
        if name in found.get(task, {}) and base in found[task]
    ]
    if not pairs:
        return None
    times = [resampled(len(one), seed) for seed, (one, _) in enumerate(pairs)]
    mine = np.mean([t @ one / len(one) for t, (one, _) in zip(times, pairs, strict=True)], axis=0)
    theirs = np.mean([t @ other / len(other) for t, (_, other) in zip(times, pairs, strict=True)], axis=0)
    assert len(mine) == DRAWS
    ratio = float(np.mean([one.mean() for one, _ in pairs]) / np.mean([other.mean() for _, other in pairs]))
    some = theirs > 0
    return ratio, *(float(q) for q in np.quantile(mine[some] / theirs[some], [0.025, 0.975]))


def shown(line: Line) -> str:
    """A figure with its interval, and "=" where it is at chance."""
    scale, form = (100, "{:.1f} [{:.1f}, {:.1f}]") if line.share else (1, "{:.3g} [{:.3g}, {:.3g}]")
    ends = line.interval
    mark = " =" if line.verdict in ("at chance", "none right") else ""
    return form.format(*(scale * value for value in (ends.mean, ends.low, ends.high))) + mark


def differs(line: Line) -> str:
    """What lies between an entrant and the first, and a star where the interval leaves out 0."""
    if line.versus is None or line.versus.difference is None:
        return ""
    apart, scale = line.versus.difference, 100 if line.share else 1
    star = "" if apart.low <= 0 <= apart.high else " *"
    p = "" if line.versus.p is None else f", p {line.versus.p:.2g}"
    return f"{scale * apart.mean:+.2f} [{scale * apart.low:+.2f}, {scale * apart.high:+.2f}]{p}{star}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("entrants", nargs="+", type=Entrant.of, help="NAME=FOLDER or NAME=FOLDER@exact; first: parent")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--tasks-dir", help="files of published tasks")
    parser.add_argument("--stories", help="for story_infill")
    parser.add_argument("--text", help="for wikitext")
    parser.add_argument("--limit", type=int, default=40, help="items of a task")
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--decoder", default="confidence")
    parser.add_argument("--protocol", default="exact-count")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="retention")
    parser.add_argument("--folder", type=Path, help="default: benchmarks/results")
    given = parser.parse_args()
    threads(given.threads)
    made = placed(given.tasks, given.tasks_dir, given.stories, given.text)
    how = How(protocol=given.protocol, draws=given.draws, decoder=given.decoder, limit=given.limit)
    asked = {name: items(task, how) for name, task in made.items()}
    found: dict[str, dict[str, Result]] = {name: {} for name in made}
    refused: list[tuple[str, str, str]] = []
    for entrant in given.entrants:
        causal = entrant.mode == "exact"  # such a model also writes token by token
        own = replace(how, mode=entrant.mode, block=1 if causal else None)
        facts = {**vars(own), "entrant": vars(entrant), "tasks": list(made), "files": files(locate(entrant.place))}
        part = Unfinished(WORK / f"{given.name}-{entrant.name}.json", facts, "measurement")
        part.resume(discard=True)
        candidate = Candidate(entrant.name, *hub.load(entrant.place))
        for name, task in made.items():
            if causal and getattr(asked[name][0], "tail", ""):
                refused.append((entrant.name, name, "token by token nothing looks at what follows a blank"))
                continue
            if reason := refusal(candidate, task, asked[name], own):
                refused.append((entrant.name, name, reason))
                continue
            found[name][entrant.name] = evaluate(candidate, name, task, asked[name], own, kept=part)
            took = found[name][entrant.name].part.seconds
            print(f"{entrant.name} at {name}: {took:.0f} s", flush=True)
    base, names = given.entrants[0].name, [entrant.name for entrant in given.entrants]
    report, numbers = Report(given.name, *([given.folder] if given.folder else [])), []
    table: list[list[object]] = []
    for task, results in found.items():
        rows = {name: row(results, base, name) for name in names}
        for figure in next((list(some) for some in rows.values() if some), []):
            told = [rows[name].get(figure) for name in names]
            chance = next((line.chance for line in told if line and line.chance), None)
            table.append(
                [f"{task}: {figure.replace('_', ' ')}", chance and 100 * chance, *(t and shown(t) for t in told)]
            )
            for name, line in zip(names, told, strict=True):
                if line is not None:
                    ends = [line.interval.mean, line.interval.low, line.interval.high]
                    facts = {"task": task, "figure": figure, "model": name, "interval": ends, "items": line.items}
                    numbers.append(facts | {"chance": line.chance, "verdict": line.verdict, "apart": differs(line)})
    title = f"At most {given.limit} items a task, 95 % intervals; '=': the interval includes chance, or none is right"
    report.table(title, ["task", "chance, %", *names], table)
    apart = [
        [task, *(differs(line) for line in (row(results, base, name).get(figure) for name in names[1:]) if line)]
        for task, results in found.items()
        if all(name in results for name in names)
        for figure in [next(iter(results[base].part.figures))]
    ]
    report.table(f"Less {base}, paired ('*': the interval leaves out 0)", ["task", *names[1:]], apart)
    shares = {name: kept(found, base, name) for name in names[1:]}
    told = [[name, *(share or (None, None, None))] for name, share in shares.items()]
    report.table(f"Mean of multiple choice as a share of {base}'s", ["model", "share", "low", "high"], told)
    silent = sorted({task for task, results in found.items() if speechless(results)})
    sentence = f"At chance for every model of this size: {', '.join(silent) or 'no task'}."
    print(sentence)
    for entrant, task, reason in refused:
        print(f"{entrant} at {task}: refused: {reason}")
    report.pages.append(sentence + "\n\n" + "".join(f"- {e} at {t}: refused: {why}\n" for e, t, why in refused))
    seconds = {task: {name: r.part.seconds for name, r in results.items()} for task, results in found.items()}
    report.write({"how": vars(how), "lines": numbers, "kept": shares, "at_chance": silent, "seconds": seconds})


def speechless(results: dict[str, Result]) -> bool:
    """Does the task say nothing of any model?"""
    main = [line for result in results.values() for line in lines([result]) if line.main]
    return bool(main) and all(line.verdict in ("at chance", "none right") for line in main)


if __name__ == "__main__":
    main()
