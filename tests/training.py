"""A tiny language, a tiny network and short runs, for the tests of the trainer."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from models import MASK, TINY
from rich.console import Console

from unveil.attention import Attention
from unveil.nn.transformer import Transformer
from unveil.objectives import Batch
from unveil.objectives.autoregressive import Autoregressive
from unveil.train import Recipe, Result, train


@dataclass
class Counting:
    """Rows that count upwards from a random token. `before` is called with every step that is asked for."""

    before: Callable[[int], None] = lambda step: None

    def batch(self, step: int, rows: int, length: int, *, seed: int = 0) -> Batch:
        self.before(step)
        start = torch.randint(0, MASK, (rows, 1), generator=torch.Generator().manual_seed(1000 * seed + step))
        tokens = (start + torch.arange(length)) % MASK
        ids = torch.arange(rows) + step * rows
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), ids=ids, seed=seed, step=step)

    def origins(self, ids: Sequence[int], length: int, *, seed: int = 0) -> list[str]:
        return [f"text-{i}" for i in ids]


def network(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(replace(TINY, qk_norm=None))
    model.attention = Attention("causal")
    return model


FLOAT32 = {"dtype": "float32"}  # by itself a machine that is fast at bfloat16 trains in that, to other numbers


def recipe(**fields) -> Recipe:
    return Recipe(**{"steps": 20, "rows": 4, "length": 8, "lr": 1e-2, "save_every": 5, **FLOAT32, **fields})


def run(out: Path, model: Transformer | None = None, data: Counting | None = None, **options) -> Result:
    """A quiet run; `options` are fields of the recipe and arguments of `train`."""
    names = {"resume", "overwrite", "evaluate", "sample", "unveil", "text", "console", "ranks"}
    given = {name: options.pop(name) for name in names & options.keys()}
    given.setdefault("console", Console(file=io.StringIO()))
    objective = options.pop("objective_", Autoregressive())
    return train(model or network(), objective, data or Counting(), recipe(**options), out=out, **given)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Are all weights equal, bit for bit?"""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
