"""Fine-tuning on a CPU: all weights beside an adapter on arithmetic, preferences after them, and the loss on GSM8K."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from measure import RESULTS, ROOT, Report, put, stamp, threads
from rich.console import Console

from unveil import hub, spec
from unveil.cli.learn import score
from unveil.cli.sft import judged
from unveil.start import Start, start
from unveil.tasks import Example
from unveil.train import Recipe, train

GSM8K = ROOT.parent / "shared" / "data" / "eval" / "gsm8k_train.jsonl"
WORK = Path(os.environ.get("UNVEIL_CACHE", "~/.cache/unveil")).expanduser() / "bench" / "tuning"
KEPT = ("step", "held_out", "held_out_ar", "exact_match", "held_out_margin", "held_out_right")
PREFERENCES = {"preference": 0.0, "preference-keep": 1.0}  # with the weight of the chosen answer's own loss


@dataclass(frozen=True)
class Plan:
    """How much is trained and on what."""

    base: str = "tasks-dlm"
    task: str = "arithmetic(least=1, most=2, largest=5, length=28)"
    problems: int = 50
    examples: int = 4000
    steps: int = 600
    rows: int = 16
    length: int = 44
    lr: float = 1e-3
    lora: str = "r=8,alpha=16"
    lora_lr: float = 3e-3
    pair_steps: int = 30
    pair_rows: int = 4
    pair_lr: float = 3e-5
    draws: int = 2
    reader: str = "stdlib-dlm"
    gsm8k: int = 1000
    gsm8k_steps: int = 24
    gsm8k_rows: int = 4
    gsm8k_length: int = 256


def rows(path: Path, found: Sequence[dict]) -> str:
    """A file of rows, and its name."""
    return str(put(path, "".join(json.dumps(row) + "\n" for row in found)))


def wrong(example: Example) -> str:
    """The answer with its last number one too high: right in form."""
    stem, _, number = example.answer.rpartition(" ")
    return f"{stem} {int(number) + 1}"


def trained(made: Start) -> int:
    return sum(p.numel() for p in made.model.parameters() if p.requires_grad)


def tuned(recipe: Recipe, out: Path, task: str | None, problems: int, console: Console) -> tuple[dict, Start]:
    """One run, with what `unveil sft` measures before, in its middle and after it."""
    made = start(recipe)
    more = judged(made, task, problems, "threshold")
    began = time.process_time()
    found = train(
        made.model,
        made.objective,
        made.corpus.train,
        made.recipe,
        out=out,
        text=made.text,
        overwrite=True,
        evaluate=lambda model: score(model, made, recipe.length) | more(model),
        console=console,
    )
    history = [{k: v for k, v in line.items() if k != "parts"} for line in found.history]
    scored = [line for line in history if "held_out" in line]
    return {
        "objective": made.recipe.objective,
        "lora": recipe.lora,
        "trained": trained(made),
        "positions": history[-1]["tokens"],
        "cpu_seconds": time.process_time() - began,
        "first_loss": next(line["loss"] for line in history if "loss" in line),
        "before": {name: scored[0][name] for name in scored[0] if name.startswith(("held", "exact"))},
        "after": {name: scored[-1][name] for name in scored[-1] if name.startswith(("held", "exact"))},
        "history": history,
    }, made


def kept(name: str, run: Callable[[], dict], console: Console) -> dict:
    """A finished run, from its file where it is there, so that a killed benchmark goes on."""
    path = WORK / f"{name}.json"
    if not path.exists():
        console.print(f"{name} ...")
        put(path, json.dumps({**run(), **stamp()}) + "\n")
    return json.loads(path.read_text())


def apart(made: Start, folder: Path, length: int) -> dict[str, float]:
    """The largest difference between the logits of a network with its adapter beside it and with it merged."""
    tokens, merged = made.corpus.held_out.windows(length, 4).tokens, hub.load_model(folder)
    with torch.no_grad():
        beside = made.model(tokens)
        found = float((beside - merged(tokens)).abs().max())
        double = float((made.model.double()(tokens) - merged.double()(tokens)).abs().max())
    return {"float32": found, "float32_share": found / float(beside.abs().max()), "float64": double}


def arithmetic(plan: Plan, console: Console) -> dict[str, dict]:
    """All weights, then an adapter, on the same rows; then preferences on the first."""
    examples = spec.build("tasks", plan.task).examples(plan.examples, "train")
    data = rows(WORK / "answers.jsonl", [{"prompt": each.prompt, "response": each.answer} for each in examples])
    pairs = [{"prompt": e.prompt, "chosen": e.answer, "rejected": wrong(e)} for e in dict.fromkeys(examples)]
    pairs_file = rows(WORK / "pairs.jsonl", pairs)
    usual = Recipe.read(ROOT / "recipes" / "sft.toml", parent=plan.base, data=data, steps=plan.steps, rows=plan.rows)
    usual = replace(usual, length=plan.length, eval_every=plan.steps // 3, save_every=0, held_out=0.01)

    def full() -> dict:
        return tuned(replace(usual, lr=plan.lr), WORK / "full", plan.task, plan.problems, console)[0]

    def lora() -> dict:
        recipe = replace(usual, lr=plan.lora_lr, lora=plan.lora)
        found, made = tuned(recipe, WORK / "lora", plan.task, plan.problems, console)
        size = (WORK / "lora" / "adapter_model.safetensors").stat().st_size
        return {**found, "bytes": size, "merged_difference": apart(made, WORK / "lora", plan.length)}

    def preference(name: str, keep: float) -> dict:
        goal = f"preference(beta=0.1, draws={plan.draws}, keep={keep})"
        recipe = replace(usual, parent=str(WORK / "full"), data=pairs_file, objective=goal, steps=plan.pair_steps)
        recipe = replace(recipe, rows=plan.pair_rows, lr=plan.pair_lr, eval_every=plan.pair_steps, held_out=0.1)
        return tuned(recipe, WORK / name, plan.task, plan.problems, console)[0]

    runs = {"full": full, "lora": lora}
    runs |= {name: partial(preference, name, keep) for name, keep in PREFERENCES.items()}
    return {name: kept(name, run, console) for name, run in runs.items()}


def read_gsm8k(plan: Plan, source: Path, console: Console) -> dict[str, dict]:
    """The loss of a small model on grade-school problems, which it cannot solve."""
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[: plan.gsm8k]]
    asked = [{"prompt": each["question"] + "\n", "response": each["answer"]} for each in lines]
    data = rows(WORK / "gsm8k.jsonl", asked)
    recipe = Recipe.read(ROOT / "recipes" / "sft.toml", parent=plan.reader, data=data, steps=plan.gsm8k_steps)
    recipe = replace(recipe, rows=plan.gsm8k_rows, length=plan.gsm8k_length, save_every=0, lr=plan.lr, log_every=1)
    recipe = replace(recipe, eval_every=plan.gsm8k_steps)
    return {"gsm8k": kept("gsm8k", lambda: tuned(recipe, WORK / "gsm8k", None, 0, console)[0], console)}


def brief(run: dict) -> dict:
    """A run with its evaluations and about twenty of its losses."""
    history = run["history"]
    every = max(len(history) // 20, 1)
    losses = [[line["step"], round(line["loss"], 4)] for line in history[::every] if "loss" in line]
    scored = [{k: v for k, v in line.items() if k in KEPT} for line in history if "held_out" in line]
    return {**{k: v for k, v in run.items() if k != "history"}, "losses": losses, "evaluations": scored}


def shown(report: Report, plan: Plan, found: dict[str, dict]) -> None:
    """The tables."""
    columns = ["run", "trained", "positions", "bound before", "after", "right before", "after", "CPU seconds"]
    table = []
    for name, run in found.items():
        before, after = run["before"], run["after"]
        share = [f"{s['exact_match']:.1%}" if "exact_match" in s else None for s in (before, after)]
        bounds = before["held_out"], after["held_out"]
        table.append([name, run["trained"], run["positions"], *bounds, *share, round(run["cpu_seconds"])])
    title = f"{plan.base} on {plan.task}, {plan.problems} test problems; gsm8k is {plan.reader}; nats per target"
    report.table(title, columns, table)
    table = []
    for name in PREFERENCES:
        before, after = found[name]["before"], found[name]["after"]
        worse = f"{after['held_out'] / before['held_out'] - 1:+.1%}"
        table.append([name, after["held_out_margin"], f"{after['held_out_right']:.1%}", worse])
    columns = ["run", "margin after", "pairs in order", "bound on the chosen answers"]
    report.table("Preferences on held-out pairs; the margin begins at 0", columns, table)
    if "lora" in found:
        run = found["lora"]
        table = [["size of the adapter, bytes", run["bytes"]]]
        table += [[f"largest difference, {name}", value] for name, value in run["merged_difference"].items()]
        report.table("The adapter: logits beside the network and merged", ["", "measured"], table)


def main(words: Sequence[str] | None = None) -> None:
    usual = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in vars(usual).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--source", type=Path, default=GSM8K, help="gsm8k_train.jsonl; left out where it is missing")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = vars(parser.parse_args(words))
    threads(given["threads"])
    plan = Plan(**{name: given[name] for name in vars(usual)})
    report = Report("tuning", given["results"])
    found = arithmetic(plan, report.console)
    if given["source"].exists():
        found |= read_gsm8k(plan, given["source"], report.console)
    else:
        report.console.print(f"GSM8K is left out: there is no {given['source']}", highlight=False)
    shown(report, plan, found)
    report.write({"plan": vars(plan), "runs": {name: brief(run) for name, run in found.items()}})


if __name__ == "__main__":
    main()
