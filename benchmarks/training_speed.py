"""Training speed: the library's loop against a plain one over `transformers` that computes the same masked loss."""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import Report, aside, interleaved, peak, resident, spread, threads
from rich.console import Console
from study.shapes import SHAPES, network, parameters, work
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM

from unveil import hub
from unveil.attention import FULL
from unveil.nn.transformer import Transformer
from unveil.objectives import Batch
from unveil.objectives.masked import Masked, hide
from unveil.processes import Draw
from unveil.train import Recipe, Training
from unveil.train.machine import bfloat16

ARMS = ("unveil", "plain")
LOW = ("unveil, bfloat16", "plain, bfloat16")  # measured where the machine has instructions for it
COMPILED = "unveil, compiled"  # measured where it is asked for
PAIRS = (("unveil", "plain"), LOW, (LOW[0], "plain"))  # what is compared
AGREE = 1e-4  # how far apart the two losses may be


class Noise:
    """Batches of random tokens as a function of the step: nothing is learnt here, only timed."""

    def __init__(self, vocab: int):
        self.vocab = vocab

    def batch(self, step: int, rows: int, length: int, *, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed + step)
        tokens = torch.randint(self.vocab - 1, (rows, length), generator=generator)
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), ids=torch.arange(rows) + step * rows, seed=seed)

    def origins(self, ids: Sequence[int], length: int, *, seed: int = 0) -> list[str]:
        return [f"row {i}" for i in ids]


def drawn(batch: Batch) -> Draw:
    """What the masked objective hides in this batch."""
    return hide(batch, None, batch.targets, "count", 1e-3)


class Ours:
    """`unveil train` with the objective `masked`, without the average of the weights."""

    def __init__(self, model: Transformer, recipe: Recipe, folder: Path):
        quiet = Console(file=io.StringIO())
        self.run = Training(model, Masked(), Noise(model.s.vocab), recipe, folder, console=quiet)
        self.run.prepare(False, False)
        self.upcoming = self.run.fetch(0)

    def step(self) -> None:
        _, self.upcoming = self.run.update(self.upcoming)

    def close(self) -> None:
        self.run.metrics.close()
        self.run.display.close()


class Plain:
    """A loop as it is usually written: a mask that allows everything, logits and loss at every position, AdamW and
    clipping as they come, autocast for bfloat16. What is hidden is drawn beforehand: its cost is not counted."""

    def __init__(self, model: LlamaForCausalLM, mask_id: int, recipe: Recipe, vocab: int, steps: int):
        self.model, self.mask_id, self.low = model.train(), mask_id, recipe.dtype == "bfloat16"
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: 1.0)
        batches = [Noise(vocab).batch(step, recipe.rows, recipe.length) for step in range(steps)]
        self.upcoming = iter([(batch, drawn(batch)) for batch in batches])

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16) if self.low else nullcontext():
            loss = plain_loss(self.model, *next(self.upcoming), self.mask_id)
        loss.backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()

    def close(self) -> None:
        pass


def plain_loss(model: LlamaForCausalLM, batch: Batch, hidden: Draw, mask_id: int, never: int | None = None) -> Tensor:
    """() the masked loss. `never` is a token without probability: set to compare with ours, not when timed."""
    rows, length = batch.tokens.shape
    everything = torch.zeros(rows, 1, length, length)  # added to the scores: all is allowed
    noisy = batch.tokens.masked_fill(hidden.hit, mask_id)
    logits = model(input_ids=noisy, attention_mask=everything, use_cache=False).logits
    if never is not None:
        logits = logits.index_fill(-1, torch.tensor([never]), -torch.inf)
    surprise = F.cross_entropy(logits.float().flatten(0, 1), batch.tokens.flatten(), reduction="none")
    return (surprise.view(rows, length) * hidden.weight).sum() / batch.targets.sum()


def twin(model: Transformer, folder: Path) -> LlamaForCausalLM:
    """The same weights as `transformers` reads them."""
    hub.save(model, folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def compare(model: Transformer, theirs: LlamaForCausalLM, recipe: Recipe) -> dict[str, float]:
    """Both losses on one batch; ValueError when they differ, for then there is nothing to time."""
    batch = Noise(model.s.vocab).batch(0, recipe.rows, recipe.length)
    with torch.no_grad():
        ours = float(Masked()(model, batch).mean)
        plain = float(plain_loss(theirs, batch, drawn(batch), model.mask_id, never=model.mask_id))
    if abs(ours - plain) > AGREE:
        raise ValueError(f"the losses differ: {ours} and {plain}")
    return {"unveil": ours, "plain": plain}


def plan(rows: int, length: int) -> Recipe:
    """Step counts do not matter: the loop is asked for single updates."""
    return Recipe(steps=1_000_000, rows=rows, length=length, lr=1e-5, ema=0, dtype="float32")


def loop(name: str, arm: str, recipe: Recipe, folder: Path, steps: int) -> Ours | Plain:
    """One arm, ready for so many steps; every arm has the same weights."""
    recipe = replace(recipe, dtype="bfloat16" if arm in LOW else "float32", compile=arm == COMPILED)
    model = network(SHAPES[name], FULL)
    if arm.startswith("plain"):
        return Plain(twin(model, folder / f"{arm} twin"), model.mask_id, recipe, model.s.vocab, steps)
    return Ours(model, recipe, folder / arm)


def memory(name: str, arm: str, recipe: Recipe, folder: Path, steps: int = 2) -> dict[str, int]:
    """Peak bytes of this process, which runs one arm alone, and what it held before there were weights."""
    before = resident()
    run = loop(name, arm, recipe, folder, steps)
    for _ in range(steps):
        run.step()
    run.close()
    return {"before": before, "peak": resident()}


def study(
    name: str,
    recipe: Recipe,
    repeats: int,
    best: Mapping[str, float],
    folder: Path,
    arms: Sequence[str] = ARMS,
    words: Sequence[str] = (),
) -> dict:
    """All arms on one shape. `best` is the machine's peak of each type; `words` are options for memory processes."""
    model = network(SHAPES[name], FULL)
    losses = compare(model, twin(model, folder / "twin"), recipe)
    # Compiled blocks are compiled again when the number of hidden tokens first changes.
    warmup = 6 if COMPILED in arms else 1
    steps = repeats + warmup
    runs = {arm: loop(name, arm, recipe, folder, steps) for arm in arms}
    seconds = interleaved({arm: run.step for arm, run in runs.items()}, repeats, warmup)
    for run in runs.values():
        run.close()
    positions = recipe.rows * recipe.length
    hits = [int(drawn(Noise(model.s.vocab).batch(step, recipe.rows, recipe.length)).hit.sum()) for step in range(steps)]
    needed = 3 * work(model.s, positions, recipe.length, sum(hits) // len(hits))  # forward once, backward twice
    found = {}
    for arm in runs:
        time = spread(seconds[arm])
        used = aside("training_speed.py", "--memory", arm, "--shape", name, *words)
        found[arm] = {
            "seconds": seconds[arm],
            "seconds_per_step": time["median"],
            "tokens_per_second": positions / time["median"],
            "share_of_peak": needed / time["median"] / best["bfloat16" if arm in LOW else "float32"],
            "peak_bytes": used["peak"],
            "bytes_before_weights": used["before"],
        }
    return {
        "shape": name,
        "parameters": parameters(model),
        "rows": recipe.rows,
        "length": recipe.length,
        "losses": losses,
        "arms": found,
        "ratios": {f"{a} to {b}": ratios(found[a], found[b]) for a, b in PAIRS if {a, b} <= found.keys()},
    }


def ratios(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """How many times the speed, and the peak memory."""
    return {
        "speed": one["tokens_per_second"] / other["tokens_per_second"],
        "memory": one["peak_bytes"] / other["peak_bytes"],
    }


def show(report: Report, found: dict) -> None:
    size = f"{found['rows']} x {found['length']}"
    title = f"{found['shape']}: {found['parameters'] / 1e6:.1f} M parameters, {size}"
    columns = ("loop", "s per step", "tokens/s", "share of peak", "peak memory, GB", "above imports, GB")
    rows = [
        (
            arm,
            one["seconds_per_step"],
            one["tokens_per_second"],
            f"{one['share_of_peak']:.0%}",
            one["peak_bytes"] / 1e9,
            (one["peak_bytes"] - one["bytes_before_weights"]) / 1e9,
        )
        for arm, one in found["arms"].items()
    ]
    ratio = [(pair, None, one["speed"], None, one["memory"], None) for pair, one in found["ratios"].items()]
    report.table(title, columns, [*rows, *ratio])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["15M", "60M"])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each loop, after one to warm up")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=None, help="folder of the result files")
    parser.add_argument("--compile", action="store_true", help="measure our loop with torch.compile as well")
    parser.add_argument("--memory", choices=(*ARMS, *LOW, COMPILED), help="run one loop alone, print its peak memory")
    given = parser.parse_args(words)
    threads(given.threads)
    recipe = plan(given.rows, given.length)
    with tempfile.TemporaryDirectory() as place:
        if given.memory:
            print(json.dumps(memory(given.shape[0], given.memory, recipe, Path(place))))
            return
        report = Report("training_speed", given.results) if given.results else Report("training_speed")
        low = bfloat16("auto", torch.device("cpu"))
        best = {"float32": peak()} | ({"bfloat16": peak(dtype=torch.bfloat16)} if low else {})
        arms = [*ARMS, *(LOW if low else ()), *([COMPILED] if given.compile else ())]
        options = ["--rows", str(given.rows), "--length", str(given.length), "--threads", str(torch.get_num_threads())]
        found = []
        for name in given.shape:
            folder = Path(place) / name
            found.append(study(name, recipe, given.repeats, best, folder, arms, options))
            show(report, found[-1])
        report.write({"peak_flops": best, "shapes": found})


if __name__ == "__main__":
    main()
