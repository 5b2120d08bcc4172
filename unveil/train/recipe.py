"""Everything that decides what a training run does, as one flat TOML file."""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..nn.adapters import Lora

QUIET = {"keep", "save_every", "log_every", "eval_every", "samples_every"}  # change no weight
FREE = QUIET | {"parallel", "deterministic"}  # a run may go on with others; the latter change rounding at most
MODES = ("auto", "ddp", "fsdp", "hsdp")


@dataclass(frozen=True)
class Recipe:
    """At least one of `steps`, `tokens` and `minutes` limits the run; whichever is reached first ends it.

    The schedules follow the share of it that has passed. A run limited by `minutes` depends on the clock and is not
    reproducible bit for bit.
    """

    # what is trained: a checkpoint, or random weights of a shape
    parent: str = ""  # folder or hub id; empty: random weights of the shape below
    family: str = "llama"
    vocab: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 0  # 0: as many as heads
    hidden: int = 0  # 0: the family's usual multiple of the width
    tied: bool = True
    # on what
    data: tuple[str, ...] = ("stdlib",)  # one source as a string, or a list of them
    field: str = "text"  # of a .jsonl or .parquet row
    chat: bool = False  # rows are conversations: prompts are never hidden, responses and their ends are learnt
    held_out: float = 0.02  # share of the documents
    close: bool = True  # end documents with the end-of-text token, so that the model learns to stop
    objective: str = "autoregressive"  # a spec string, or auto: what fits the attention that the parent has
    lora: str = ""  # a low-rank adapter, as r=8,alpha=16,targets=all, on weights that stay; empty: all are trained
    shift: str = "auto"  # is token i read at i - 1? auto (as the objective has it), yes or no
    # for how long
    steps: int = 0
    tokens: int = 0  # positions read, rows * length a step
    minutes: float = 0.0  # of wall-clock time, evaluation and saving included
    rows: int = 16  # sequences an update
    length: int = 256  # positions a sequence
    accumulate: int = 1  # micro-batches the rows are split into over all processes; it changes memory, not the result
    # how
    lr: float = 3e-4
    min_lr: float = 0.1  # share of lr left at the end
    warmup: float = 0.03  # share of the run
    mlp_lr: float = 1.0  # multiplies lr for the MLPs
    embedding_lr: float = 1.0  # multiplies lr for the embeddings, and for the head tied to them
    weight_decay: float = 0.1  # of matrices; never of embeddings, norms and biases
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # largest gradient norm; 0: none
    ema: float = 0.999  # decay of the average of the weights; 0: none
    dtype: str = "auto"  # of the matrix products: auto, float32 or bfloat16; weights are float32
    compile: bool = False
    checkpointing: bool = False  # recompute activations in the backward pass
    parallel: str = "auto"  # several processes: ddp (each has all weights), fsdp (a share), hsdp (a share a machine)
    deterministic: bool = False  # only kernels that give the same bits every time; on CUDA they are slower
    seed: int = 0
    # what is written down
    log_every: int = 1
    eval_every: int = 0  # steps; 0: only at the end
    samples_every: int = 0  # steps; 0: only at the end
    save_every: int = 500  # steps; 0: only at the end and when stopped
    keep: int = 2  # checkpoints; 0: all

    def __post_init__(self):
        for name, kind in get_type_hints(Recipe).items():
            object.__setattr__(self, name, fit(name, kind, getattr(self, name)))
        positive = [n for n in ("rows", "length", "accumulate", "lr", "log_every") if not getattr(self, n) > 0]
        below = ("steps", "tokens", "minutes", *QUIET, "clip", "weight_decay", "mlp_lr", "embedding_lr", "seed")
        negative = [n for n in below if not getattr(self, n) >= 0]
        shares = [n for n in ("min_lr", "warmup", "held_out") if not 0 <= getattr(self, n) <= 1]
        wrong = [*positive, *negative, *shares] + ["ema"] * (not 0 <= self.ema < 1)
        wrong += ["betas"] * (not all(0 <= beta < 1 for beta in self.betas))
        if wrong:
            raise ValueError(f"{wrong[0]} = {getattr(self, wrong[0])} is out of range")
        if self.accumulate > self.rows:
            raise ValueError(f"accumulate = {self.accumulate} micro-batches need as many rows, got {self.rows}")
        if self.lora:
            Lora.parse(self.lora)
        if self.shift not in ("auto", "yes", "no"):
            raise ValueError(f"shift is auto, yes or no, got {self.shift!r}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype is auto, float32 or bfloat16, got {self.dtype!r}")
        if self.parallel not in MODES:
            raise ValueError(f"parallel is auto, ddp, fsdp or hsdp, got {self.parallel!r}")

    @classmethod
    def read(cls, path: str | Path | None = None, **flags: object) -> Recipe:
        """A file's recipe, with the flags that are not None put over it."""
        given: dict[str, Any] = {}
        if path is not None:
            try:
                given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            except FileNotFoundError:
                raise ValueError(f"no recipe at {path}") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is not TOML: {error}") from None
        given |= {name: value for name, value in flags.items() if value is not None}
        return cls.of(given, str(path) if path is not None else "the recipe")

    @classmethod
    def of(cls, given: dict[str, Any], where: str = "the recipe") -> Recipe:
        """ValueError lists the valid names when one is unknown."""
        valid = [f.name for f in fields(cls)]
        if unknown := [name for name in given if name not in valid]:
            raise ValueError(f"{where} has no field {unknown[0]!r}; the fields are: {', '.join(valid)}")
        return cls(**given)

    @property
    def updates(self) -> int | None:
        """How many updates `steps` and `tokens` allow; None when only the clock limits."""
        limits = [self.steps] * (self.steps > 0)
        limits += [math.ceil(self.tokens / (self.rows * self.length))] * (self.tokens > 0)
        return min(limits, default=None)

    def share(self, step: float, seconds: float) -> float:
        """How much of the run has passed, in [0, 1], after so many updates and seconds."""
        passed = [step / self.updates] if self.updates else []
        passed += [seconds / (60 * self.minutes)] if self.minutes else []
        return min(max(passed), 1.0)

    def plain(self) -> dict[str, object]:
        """JSON and TOML know no tuples."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def toml(self) -> str:
        """What `read` reads."""
        return "".join(f"{name} = {literal(value)}\n" for name, value in self.plain().items())

    def differences(self, other: Recipe) -> list[str]:
        """The fields that decide the result and differ, each as "lr (0.1 there, 0.2 here)"."""
        there, here = other.plain(), self.plain()
        changed = [n for n in here if n not in FREE and here[n] != there[n]]
        return [f"{n} ({there[n]!r} there, {here[n]!r} here)" for n in changed]


def fit(name: str, kind: object, value: object):
    """The value as the kind that the field has, or ValueError."""
    if kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        if kind is float:
            return float(value)
        if value == int(value):
            return int(value)
    if kind in (bool, str) and type(value) is kind:
        return value
    if kind == tuple[str, ...] and value:
        several = [value] if isinstance(value, str) else value
        if isinstance(several, list | tuple) and all(isinstance(part, str) and part for part in several):
            return tuple(several)
    if kind == tuple[float, float] and isinstance(value, list | tuple) and len(value) == 2:
        return tuple(fit(name, float, part) for part in value)
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}
    words |= {tuple[str, ...]: "a string or a list of strings", tuple[float, float]: "two numbers"}
    raise ValueError(f"{name} is {words[kind]}, got {value!r}")


def literal(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'
    return f"[{', '.join(map(literal, value))}]" if isinstance(value, list) else repr(value)
