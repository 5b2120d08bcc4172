"""What a run remembers: its state goes to checkpoints, and comes back from them."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoint
from .checkpoint import Saving, Stored, owned, parts
from .optimiser import Average, blank, flatten, rate
from .ranks import Ranks
from .recipe import Recipe


@dataclass
class Memory:
    """The checkpoints of one run, which several processes may write and read together."""

    model: nn.Module
    optimiser: torch.optim.AdamW
    average: Average | None
    recipe: Recipe
    ranks: Ranks
    out: Path

    saved: int = -1  # the step of the latest checkpoint
    saving: Saving | None = None  # the checkpoint on its way to the disk

    @property
    def failed(self) -> bool:
        """Could this process not write its part?"""
        return self.saving is not None and self.saving.trouble is not None

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state of training, by file."""
        found = {"model": owned(self.model), "optimiser": flatten(self.model, self.optimiser)}
        return found | ({"ema": self.average.kept} if self.average is not None else {})

    def save(self, step: int, tokens: int, seconds: float, wait: bool) -> Path:
        """The path of the checkpoint; training may go on while it is written, unless it is to `wait`.

        One process on a CPU always waits: a copy of the state and a thread would take from what it trains with.
        """
        self.settle()
        recipe, ranks = self.recipe, self.ranks
        path = self.out / "checkpoints" / f"step-{step:08d}"
        if self.saved == step:
            return path
        dice, plain = checkpoint.dice()
        share = recipe.share(step, seconds)
        state = {
            "recipe": recipe.plain(),
            "tokens": tokens,
            "seconds": seconds,
            "cursor": {"step": step, "sample": step * recipe.rows, "seed": recipe.seed},
            "schedule": {"share": share, "lr": rate(recipe, share)},
            "rng": plain,
        }
        behind = ranks.world > 1 or next(self.model.parameters()).device.type != "cpu"
        writes = ranks.rank < ranks.writers
        tensors = self.tensors() | ({checkpoint.DICE: dice} if ranks.leads else {})
        mine = parts(tensors, behind, ranks.leads) if writes else {}
        self.saving = Saving(path.parent, step, mine, state, recipe.keep, ranks.rank, ranks.writers)
        self.saved = step
        if writes:
            self.saving.begin() if behind else self.saving.write()
        if wait or not behind:
            self.settle()
        return path

    def settle(self) -> None:
        """Wait until the checkpoint that is being written is whole; OSError, in all processes, when it cannot be."""
        while self.saving is not None:
            saving, running = self.saving, self.saving.running
            state = torch.tensor([running, self.failed], dtype=torch.int64)  # running first: a failure ends the thread
            running, failed = self.ranks.gather(state).amax(0).tolist()
            if failed:
                saving.abandon()
                self.saving = None
                self.ranks.wait()  # until nobody writes there any more
                if self.ranks.leads:
                    shutil.rmtree(saving.partial, ignore_errors=True)
                raise saving.trouble or OSError(f"another process could not write its part of {saving.path}")
            if running:
                time.sleep(checkpoint.POLL)
            else:
                self.saving = None

    def load(self, path: Path) -> dict:
        """Take up a checkpoint's state; ValueError when it is of another recipe or another model."""
        stored = Stored(path)
        state = stored.state
        differences = self.recipe.differences(Recipe.of(state["recipe"], str(path)))
        if differences:
            raise ValueError(f"cannot continue {self.out} with another recipe; it differs in {', '.join(differences)}")
        mine, theirs = owned(self.model), stored.shapes["model"]
        wrong = sorted(mine.keys() ^ theirs.keys())
        wrong += [n for n in mine if n in theirs and tuple(mine[n].shape) != theirs[n]]
        if wrong:
            raise ValueError(f"{path} is of another model: it differs in {wrong[0]} and {len(wrong) - 1} other tensors")
        blank(self.model, self.optimiser, stored.shapes["optimiser"])
        for name, wanted in parts(self.tensors(), copy=False).items():
            stored.read(name, wanted)
        checkpoint.set_dice(stored.tensors(checkpoint.DICE), state["rng"])
        self.saved = state["step"]
        return state
