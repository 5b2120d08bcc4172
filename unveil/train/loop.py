"""The loop: batches to gradients to weights, until the recipe's end or a signal."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import current_thread, main_thread
from typing import Protocol

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.utils import get_total_norm

from .. import families, hub
from ..codecs.text import Text
from ..denoiser import Denoiser
from ..nn.grow import bare
from ..objectives import Batch, Objective
from . import checkpoint
from .checkpoint import owned, put
from .machine import bfloat16, compiled, moved, recompute, split
from .metrics import Display, Metrics
from .optimiser import Average, adamw, flatten, rate, restore, set_rate
from .recipe import Recipe


class Source(Protocol):
    """Batches as a function of the step and the seed, so that any step can be returned to."""

    def batch(self, step: int, rows: int, length: int, *, seed: int = 0) -> Batch: ...

    def origins(self, ids: Sequence[int], length: int, *, seed: int = 0) -> list[str]:
        """The names of the documents that these samples hold."""
        ...


Evaluate = Callable[[Denoiser], dict[str, float] | float]
Sample = Callable[[Denoiser], str]


@dataclass
class Result:
    """What a finished run leaves."""

    path: Path  # the exported model
    history: list[dict]  # the lines of metrics.jsonl
    metrics: dict  # the last of them


class Stopped(SystemExit):
    """A signal ended the run after it had saved; the exit code is 128 + the signal (143 SIGTERM, 130 SIGINT)."""

    def __init__(self, number: int, step: int, path: Path):
        super().__init__(128 + number)
        self.step, self.path = step, path


def train(
    model: Denoiser,
    objective: Objective,
    data: Source,
    recipe: Recipe,
    *,
    out: str | Path,
    text: Text | None = None,
    resume: bool = False,
    overwrite: bool = False,
    evaluate: Evaluate | None = None,
    sample: Sample | None = None,
    console: Console | None = None,
    unveil: dict | None = None,
) -> Result:
    """Train `model` in place and export it, averaged if `recipe.ema`, to `out` in its family's layout.

    `data` is one split of a corpus. `evaluate(model)` gives numbers for the log (a float is logged as "held_out") and
    `sample(model)` a text; both see the averaged weights. `unveil` goes into config.json with the objective and the
    tokens seen. The last `recipe.keep` checkpoints lie in `out/checkpoints`; `resume` continues from the newest whole
    one.

    ValueError: `out` exists without `resume` or `overwrite`, or its recipe is another. FloatingPointError: the loss or
    the gradient is not finite. OSError: the disk does not take a checkpoint. Stopped (a SystemExit): SIGTERM or SIGINT.
    """
    run = Training(model, objective, data, recipe, Path(out), text, evaluate, sample, unveil, console)
    run.prepare(resume, overwrite)
    return run.finish()


@dataclass
class Training:
    """One run: what it was given, and where it is."""

    model: Denoiser
    objective: Objective
    data: Source
    recipe: Recipe
    out: Path
    text: Text | None = None
    evaluate: Evaluate | None = None
    sample: Sample | None = None
    unveil: dict | None = None
    console: Console | None = None

    step: int = 0  # updates done
    tokens: int = 0  # positions read
    seconds: float = 0.0  # wall-clock time, over all the processes that worked on this run
    received: int = 0  # the signal that asks to stop
    began: float = field(default_factory=time.monotonic)
    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=20))

    def prepare(self, resume: bool, overwrite: bool) -> None:
        """Check the output folder, set up everything, and go to where an earlier process stopped."""
        if self.recipe.updates is None and not self.recipe.minutes:
            raise ValueError("the recipe has no end: give steps, tokens or minutes")
        net = bare(self.model)  # what cannot be exported is refused now and not when all is done
        hub.new_config(self.model, net, families.named(net.family or "llama"), self.text, self.unveil or {})
        start = checkpoint.claim(self.out, resume, overwrite)
        self.model.float()
        self.model.train()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        if not self.weights:
            raise ValueError("the model has no weights to train: all are frozen")
        self.device = self.weights[0].device
        self.low = bfloat16(self.recipe.dtype, self.device)
        recompute(self.model, self.recipe.checkpointing)
        self.optimiser = adamw(self.model, self.recipe)
        self.average = Average(self.model, self.recipe.ema) if self.recipe.ema else None
        if start is None:
            random.seed(self.recipe.seed)
            np.random.seed(self.recipe.seed % 2**32)
            torch.manual_seed(self.recipe.seed)
        else:
            self.load(start)
        if self.recipe.compile:
            compiled(self.model)
        self.out.mkdir(parents=True, exist_ok=True)
        put(self.out / "recipe.toml", self.recipe.toml())
        self.metrics = Metrics(self.out, self.step if start else None)
        self.display = Display(self.console or Console(stderr=True), self.recipe.updates)
        if start is not None:
            self.display.say(f"continuing at step {self.step} from {start}")

    def finish(self) -> Result:
        """Run to the end and export; Stopped when a signal came first."""
        try:
            with self.listening():
                self.loop()
            self.checkpoint()
            self.export()
            return Result(self.out, self.metrics.history, self.metrics.history[-1] if self.metrics.history else {})
        finally:
            self.metrics.close()
            self.display.close()

    @property
    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.began

    @property
    def ended(self) -> bool:
        return self.recipe.share(self.step, self.elapsed) >= 1

    def loop(self) -> None:
        """Updates, with what is due after each."""
        self.began = time.monotonic()
        if self.step == 0 and self.recipe.eval_every:
            self.metrics.write({"step": 0, "tokens": 0, "seconds": self.elapsed, **self.score()})
        last = self.ended
        batch = self.fetch(self.step)
        while not last:
            line, batch = self.update(batch)
            last = self.ended
            if self.due(self.recipe.eval_every, last):
                line |= self.score()
            if last or self.step % self.recipe.log_every == 0 or "held_out" in line:
                self.metrics.write(line)
            share = self.recipe.share(self.step, self.elapsed)
            self.display.show(line, 1.0 if last else share, sum(self.speeds) / len(self.speeds))
            if self.due(self.recipe.samples_every, last):
                self.write_sample()
            if self.received and not last:
                path = self.checkpoint()
                self.display.say(f"stopped by {signal.Signals(self.received).name} at step {self.step}; saved {path}")
                raise Stopped(self.received, self.step, path)
            if self.recipe.save_every and self.step % self.recipe.save_every == 0 and not last:
                self.checkpoint()

    def due(self, every: int, last: bool) -> bool:
        return last or bool(every and self.step % every == 0)

    def fetch(self, step: int) -> Batch:
        """The rows of an update, on the model's device, each with a number that keys its corruption."""
        recipe = self.recipe
        batch = self.data.batch(step, recipe.rows, recipe.length, seed=recipe.seed)
        ids = batch.ids if batch.ids is not None else torch.arange(len(batch.tokens)) + step * recipe.rows
        return moved(replace(batch, ids=ids, step=step), self.device)

    def update(self, batch: Batch) -> tuple[dict, Batch]:
        """One step of the optimiser: the line for the log, and the next batch.

        Sums and counts are added over the micro-batches and the gradient is divided once, so that the split changes
        nothing. The host waits for the device once, when the next batch is ready.
        """
        recipe, began = self.recipe, time.perf_counter()
        batch.progress = recipe.share(self.step, self.elapsed)
        sums: dict[str, Tensor] = {}
        for micro in split(batch, recipe.accumulate):
            with torch.autocast(self.device.type, torch.bfloat16) if self.low else nullcontext():
                loss = self.objective(self.model, micro)
            loss.total.backward()
            for name, value in (("total", loss.total), ("count", loss.count), *loss.parts.items()):
                value = torch.as_tensor(value, device=self.device).detach().double()
                sums[name] = sums[name] + value if name in sums else value
        gradients = [p.grad for p in self.weights if p.grad is not None]
        count = sums["count"].clamp(min=1)
        norm = get_total_norm(gradients, foreach=True) / count
        scale = (recipe.clip / (norm + 1e-6)).clamp(max=1.0) if recipe.clip else torch.ones_like(norm)
        torch.ops.aten._foreach_mul_.Tensor(gradients, (scale / count).float())
        upcoming = self.fetch(self.step + 1)
        means = torch.stack([sums.pop("total") / count, norm, *(v / count for n, v in sums.items() if n != "count")])
        mean, size, *parts = means.tolist()
        if not (math.isfinite(mean) and math.isfinite(size)):
            raise FloatingPointError(self.culprit(batch, mean, size))
        # The coming step counts as passed, so that the first rate is not zero and the last one is the floor.
        pace = recipe.rows * recipe.length / self.speeds[-1] if self.speeds else 0.0
        lr = rate(recipe, recipe.share(self.step + 1, self.elapsed + pace))
        set_rate(self.optimiser, lr)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        self.tokens += batch.tokens.numel()
        self.speeds.append(batch.tokens.numel() / (time.perf_counter() - began))
        names = [name for name in sums if name != "count"]
        line = {
            "step": self.step,
            "tokens": self.tokens,
            "loss": mean,
            "parts": dict(zip(names, parts, strict=True)),
            "lr": lr,
            "grad_norm": size,  # before clipping
            "tokens_per_second": self.speeds[-1],
            "seconds": self.elapsed,
        }
        return line, upcoming

    def culprit(self, batch: Batch, loss: float, norm: float) -> str:
        """What is known about a number that is not finite."""
        assert batch.ids is not None
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
        ids = batch.ids.tolist()
        names = self.data.origins(ids, self.recipe.length, seed=self.recipe.seed)
        said = f"{what} at step {self.step + 1}; the batch holds the samples {ids} of the documents {', '.join(names)}"
        last = checkpoint.newest(self.out / "checkpoints")
        return f"{said}; the last good checkpoint is {last}" if last else f"{said}; there is no checkpoint yet"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model as it will be exported: averaged, in evaluation mode, without gradients."""
        self.model.eval()
        try:
            with self.average.applied() if self.average else nullcontext(), torch.no_grad():
                yield
        finally:
            self.model.train()

    def score(self) -> dict[str, float]:
        """The held-out numbers; nothing when no `evaluate` was given."""
        if self.evaluate is None:
            return {}
        with self.shown():
            found = self.evaluate(self.model)
        found = found if isinstance(found, dict) else {"held_out": float(found)}
        self.display.say(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
        return found

    def write_sample(self) -> None:
        """A text to look at, in `samples/`."""
        if self.sample is None:
            return
        with self.shown():
            written = self.sample(self.model)
        if not written:
            return
        (self.out / "samples").mkdir(exist_ok=True)
        put(self.out / "samples" / f"step-{self.step:08d}.txt", written)
        self.display.say(written)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run after the step under way; a second one ends it at once."""
        if current_thread() is not main_thread():  # Python hands signals to the main thread alone
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def receive(number: int, frame: object) -> None:
            self.received = number
            for each, old in before.items():
                signal.signal(each, old)

        for number in before:
            signal.signal(number, receive)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def checkpoint(self) -> Path:
        """Everything that decides how the run goes on."""
        dice, plain = checkpoint.dice()
        tensors = {"model": owned(self.model), "optimiser": flatten(self.model, self.optimiser), "rng": dice}
        if self.average is not None:
            tensors["ema"] = self.average.kept
        share = self.recipe.share(self.step, self.elapsed)
        state = {
            "recipe": self.recipe.plain(),
            "tokens": self.tokens,
            "seconds": self.elapsed,
            "cursor": {"step": self.step, "sample": self.step * self.recipe.rows, "seed": self.recipe.seed},
            "schedule": {"share": share, "lr": rate(self.recipe, share)},
            "rng": plain,
        }
        return checkpoint.save(self.out / "checkpoints", self.step, tensors, state, self.recipe.keep)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint; ValueError when it is of another recipe or another model."""
        tensors, state = checkpoint.read(path)
        differences = self.recipe.differences(Recipe.of(state["recipe"], str(path)))
        if differences:
            raise ValueError(f"cannot continue {self.out} with another recipe; it differs in {', '.join(differences)}")
        mine, theirs = owned(self.model), tensors["model"]
        wrong = sorted(n for n in mine.keys() | theirs.keys() if n not in mine or n not in theirs)
        wrong += [n for n in mine if n in theirs and mine[n].shape != theirs[n].shape]
        if wrong:
            raise ValueError(f"{path} is of another model: it differs in {wrong[0]} and {len(wrong) - 1} other tensors")
        with torch.no_grad():
            for name, value in theirs.items():
                mine[name].copy_(value)
            for name, value in tensors.get("ema", {}).items():
                assert self.average is not None
                self.average.kept[name].copy_(value)
        restore(self.model, self.optimiser, tensors["optimiser"])
        checkpoint.set_dice(tensors["rng"], state["rng"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]

    def export(self) -> None:
        """The final weights, which the model keeps, beside the checkpoints; each file takes its place whole."""
        if self.average is not None:
            self.average.swap()
        self.model.eval()
        told = {**(self.unveil or {}), "recipe": self.recipe.objective, "tokens_seen": self.tokens}
        partial = self.out / ".partial-export"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            hub.save(self.model, partial, self.text, unveil=told)
            for file in sorted(partial.iterdir(), key=lambda f: f.name == "config.json"):
                os.replace(file, self.out / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
