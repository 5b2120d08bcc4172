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
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from .. import families, hub
from ..codecs.text import Text
from ..denoiser import Denoiser
from ..nn.grow import bare
from ..objectives import Batch, Objective
from ..whole import put
from . import checkpoint
from .machine import bfloat16, compiled, deterministic, local, moved, recompute, split
from .memory import Memory
from .metrics import Display, Metrics
from .optimiser import Average, adamw, rate, set_rate
from .ranks import ALONE, JOB, Ranks
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
    ranks: Ranks = ALONE,
) -> Result:
    """Train `model` in place and export it, averaged if `recipe.ema`, to `out` in its family's layout.

    `data` is one split of a corpus. `evaluate(model)` gives numbers for the log (a float is logged as "held_out") and
    `sample(model)` a text; both see the averaged weights. `unveil` goes into config.json with the objective and the
    tokens seen. The last `recipe.keep` checkpoints lie in `out/checkpoints`; `resume` continues from the newest whole
    one.

    Under a launcher, `ranks` are the processes that `several.joined` gives; each calls this with the same arguments,
    the numbers are those of one process, and the first prints and writes. `model` is then left spread over them.

    ValueError: `out` exists without `resume` or `overwrite`, or its recipe is another. FloatingPointError: the loss or
    the gradient is not finite. OSError: the disk does not take a checkpoint. Stopped (a SystemExit): SIGTERM or SIGINT.
    """
    run = Training(model, objective, data, recipe, Path(out), text, evaluate, sample, unveil, console, ranks)
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
    ranks: Ranks = ALONE

    step: int = 0  # updates done
    tokens: int = 0  # positions read
    seconds: float = 0.0  # wall-clock time, over all the processes that worked on this run
    received: int = 0  # the signal that asks to stop
    told: int = 0  # the same, of any process and known to all of them
    began: float = field(default_factory=time.monotonic)
    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=20))

    def prepare(self, resume: bool, overwrite: bool) -> None:
        """Check the output folder, set up everything, and go to where an earlier process stopped."""
        if self.recipe.updates is None and not self.recipe.minutes:
            raise ValueError("the recipe has no end: give steps, tokens or minutes")
        net = bare(self.model)  # what cannot be exported is refused now and not when all is done
        hub.new_config(self.model, net, families.named(net.family or "llama"), self.text, self.unveil or {})
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ValueError("the model has no weights to train: all are frozen")
        self.ranks.check(self.recipe)
        resume, overwrite = self.ranks.way(self.out, resume, overwrite)
        start = checkpoint.claim(self.out, resume, overwrite, self.ranks)
        self.agree()
        self.model.float()
        self.model.train()
        self.device = self.ranks.device or next(self.model.parameters()).device
        self.low = bfloat16(self.recipe.dtype, self.device)
        self.ranks.spread(self.model, self.recipe, self.low)
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        for frozen in (each for each in vars(self.objective).values() if isinstance(each, nn.Module)):
            frozen.to(self.device)
        recompute(self.model, self.recipe.checkpointing)
        self.optimiser = adamw(self.model, self.recipe)
        self.average = Average(self.model, self.recipe.ema) if self.recipe.ema else None
        self.memory = Memory(self.model, self.optimiser, self.average, self.recipe, self.ranks, self.out)
        if start is None:
            random.seed(self.recipe.seed)
            np.random.seed(self.recipe.seed % 2**32)
            torch.manual_seed(self.recipe.seed)
        else:
            state = self.memory.load(start)
            self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        if self.recipe.compile:
            compiled(self.model)
        self.ranks.led(self.settle_in)
        self.metrics = Metrics(self.out, self.step if start else None, quiet=not self.ranks.leads)
        console = self.console if self.ranks.leads else Console(quiet=True)
        self.display = Display(console or Console(stderr=True), self.recipe.updates)
        if start is not None:
            self.display.say(f"continuing at step {self.step} from {start}")

    def settle_in(self) -> str:
        """The folder, and what says whose it is."""
        self.out.mkdir(parents=True, exist_ok=True)
        put(self.out / "recipe.toml", self.recipe.toml())
        if self.ranks.job():
            put(self.out / JOB, self.ranks.job())
        return ""

    def agree(self) -> None:
        """Make sure that all processes are about to do the same."""
        if self.ranks.world == 1:
            return
        weights = {name: (*p.shape, p.flatten()[0].item()) for name, p in self.model.named_parameters()}
        batch = self.data.batch(0, self.recipe.rows, self.recipe.length, seed=self.recipe.seed)
        said = self.ranks.words(f"{self.recipe} {weights} {batch.tokens.sum().item()} {batch.tokens.shape}")
        differ = [rank for rank, words in enumerate(said) if words != said[0]]
        if differ:
            raise ValueError(f"process {differ[0]} has another recipe, model or data than the first process")

    def finish(self) -> Result:
        """Run to the end and export; Stopped when a signal came first."""
        try:
            with self.listening(), deterministic(self.recipe.deterministic):
                self.loop()
                self.checkpoint(wait=True)
            self.export()
            return Result(self.out, self.metrics.history, self.metrics.history[-1] if self.metrics.history else {})
        finally:
            self.metrics.close()
            self.display.close()

    @property
    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def share(self, steps: int = 0, seconds: float = 0.0) -> float:
        """How much of the run will have passed after so many more updates and seconds, by the first process's clock."""
        clock = self.elapsed + seconds
        return self.recipe.share(self.step + steps, self.ranks.same(clock) if self.recipe.minutes else clock)

    def loop(self) -> None:
        """Updates, with what is due after each."""
        self.began = time.monotonic()
        if self.step == 0 and self.recipe.eval_every:
            self.metrics.write({"step": 0, "tokens": 0, "seconds": self.elapsed, **self.score()})
        last = self.share() >= 1
        batch = self.fetch(self.step)
        while not last:
            line, batch = self.update(batch)
            share = self.share()
            last = share >= 1
            if self.due(self.recipe.eval_every, last):
                line |= self.score()
            if last or self.step % self.recipe.log_every == 0 or "held_out" in line:
                self.metrics.write(line)
            self.display.show(line, share, sum(self.speeds) / len(self.speeds))
            if self.due(self.recipe.samples_every, last):
                self.write_sample()
            if self.told and not last:
                path = self.checkpoint(wait=True)
                self.display.say(f"stopped by {signal.Signals(self.told).name} at step {self.step}; saved {path}")
                raise Stopped(self.told, self.step, path)
            if self.recipe.save_every and self.step % self.recipe.save_every == 0 and not last:
                self.checkpoint()

    def due(self, every: int, last: bool) -> bool:
        return last or bool(every and self.step % every == 0)

    def fetch(self, step: int) -> Batch:
        """This process's rows of an update, on its device, each with a number that keys its corruption."""
        recipe = self.recipe
        batch = self.data.batch(step, recipe.rows, recipe.length, seed=recipe.seed)
        ids = batch.ids if batch.ids is not None else torch.arange(len(batch.tokens)) + step * recipe.rows
        return moved(self.ranks.share(replace(batch, ids=ids, step=step)), self.device)

    def update(self, batch: Batch) -> tuple[dict, Batch]:
        """One step of the optimiser: the line for the log, and the next batch.

        Sums and counts are added over micro-batches and processes and the gradient is divided once, so that the split
        changes nothing. The host waits for the device once, when the next batch is ready.
        """
        recipe, ranks, began = self.recipe, self.ranks, time.perf_counter()
        batch.progress = self.share()
        sums: dict[str, Tensor] = {}
        parts = split(batch, ranks.micro(recipe.accumulate))
        for micro in parts:
            ranks.sums(self.model, last=micro is parts[-1])
            with torch.autocast(self.device.type, torch.bfloat16) if self.low and not ranks.sharded else nullcontext():
                loss = self.objective(self.model, micro)
            loss.total.backward()
            for name, value in (("total", loss.total), ("count", loss.count), *loss.parts.items()):
                value = torch.as_tensor(value, device=self.device).detach().double()
                sums[name] = sums[name] + value if name in sums else value
        gradients = [local(p.grad) for p in self.weights if p.grad is not None]
        upcoming = self.fetch(self.step + 1)
        square = get_total_norm(gradients, foreach=True).double().square()
        news = torch.tensor([self.received, self.memory.failed], dtype=square.dtype, device=square.device)
        every = ranks.gather(torch.cat([torch.stack([*sums.values(), square]), news]))
        found = dict(zip(sums, every.sum(0)[: len(sums)], strict=True))
        count = found.pop("count").clamp(min=1)
        norm = (every[:, len(sums)].sum() * (ranks.writers / ranks.world)).sqrt() * ranks.divides / count
        scale = (recipe.clip / (norm + 1e-6)).clamp(max=1.0) if recipe.clip else torch.ones_like(norm)
        torch.ops.aten._foreach_mul_.Tensor(gradients, (scale * ranks.divides / count).float())
        means = [each / count for each in found.values()]
        size, told, failed, mean, *terms = torch.stack([norm, *every[:, -2:].amax(0), *means]).tolist()
        self.told = int(told)
        if failed:
            self.memory.settle()
        if not (math.isfinite(mean) and math.isfinite(size)):
            raise FloatingPointError(self.culprit(batch, mean, size))
        # The coming step counts as passed, so that the first rate is not zero and the last one is the floor.
        pace = recipe.rows * recipe.length / self.speeds[-1] if self.speeds else 0.0
        lr = rate(recipe, self.share(1, pace))
        set_rate(self.optimiser, lr)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        tokens = batch.tokens.numel() * ranks.world
        self.tokens += tokens
        self.speeds.append(tokens / (time.perf_counter() - began))
        line = {
            "step": self.step,
            "tokens": self.tokens,
            "loss": mean,
            "parts": dict(zip(list(found)[1:], terms, strict=True)),
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
        ids = [int(each) for each in self.ranks.gather(batch.ids).flatten()]
        names = self.data.origins(ids, self.recipe.length, seed=self.recipe.seed)
        said = f"{what} at step {self.step + 1}; the batch holds the samples {ids} of the documents {', '.join(names)}"
        last = checkpoint.newest(self.out / "checkpoints", self.ranks)
        return f"{said}; the last good checkpoint is {last}" if last else f"{said}; there is no checkpoint yet"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model as it will be exported: averaged, in evaluation mode, without gradients."""
        self.model.eval()
        try:
            with self.average.applied() if self.average else nullcontext(), torch.no_grad():
                yield
        finally:
            self.ranks.forget(self.model)
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
        if not written or not self.ranks.leads:
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
            if not self.ranks.job():  # a launcher passes on what the terminal has sent already
                for each, old in before.items():
                    signal.signal(each, old)

        for number in before:
            signal.signal(number, receive)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def checkpoint(self, wait: bool = False) -> Path:
        """Everything that decides how the run goes on."""
        return self.memory.save(self.step, self.tokens, self.elapsed, wait)

    def export(self) -> None:
        """The final weights, which the model keeps, beside the checkpoints."""
        if self.average is not None:
            self.average.swap()
        self.model.eval()
        with self.ranks.gathered(self.model):
            self.ranks.led(self.write_model)

    def write_model(self) -> str:
        """Each file takes its place whole."""
        told = {**(self.unveil or {}), "recipe": self.recipe.objective, "tokens_seen": self.tokens}
        partial = self.out / ".partial-export"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            hub.save(self.model, partial, self.text, unveil=told)
            for file in sorted(partial.iterdir(), key=lambda f: f.name == "config.json"):
                os.replace(file, self.out / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return ""
