"""What the HTTP process and the engine say to each other, as plain data that becomes one line of JSON.

Positions count from 0 within a row, the prompt included. Nothing here is text: the engine knows tokens alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, get_args

# To the engine


@dataclass(frozen=True)
class Row:
    """One sequence to finish."""

    tokens: list[int]  # blanks hold the mask id
    seed: int  # keys every random choice of the row


@dataclass(frozen=True)
class Submit:
    """A request: rows that share every option. `n` answers to one prompt are n rows with seeds of their own."""

    id: str
    rows: list[Row]
    decoder: str = "confidence"  # spec strings, as everywhere
    cache: str | None = None  # None: causal where finished blocks are kept exactly, recompute elsewhere
    block: int | None = None  # None: the model's own, or one block
    steps: int | None = None
    guide: str | None = None
    full: bool = False  # look both ways (infilling with a leader model)
    top: int | None = 0  # likeliest tokens told of each committed position; None: not even how likely it was itself
    ends: bool = True  # a row is done once everything before its first end-of-text token is final
    adapter: str | None = None  # None: the model as it is
    schema: dict[str, Any] | None = None  # JSON schema that what is written into the row's only blank must follow


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this any longer; its slot is free at the next step."""

    id: str
    row: int | None = None  # None: every row


@dataclass(frozen=True)
class Drain:
    """Finish what was taken, take nothing more, then stop."""


# From the engine


@dataclass(frozen=True)
class Ready:
    """The engine has loaded its model."""

    name: str  # as its user called it
    mask_id: int
    eos_id: int | None
    start_id: int | None  # what a prompt begins with
    attention: str  # full, block or leader
    block: int | None  # positions per block it was trained with
    context: int | None  # positions it can hold
    vocab: int
    parameters: int
    device: str
    dtype: str
    memory: int  # bytes for keys and values of requests, all together
    adapters: list[str] = field(default_factory=list)  # names that requests may ask for instead of the model's


@dataclass(frozen=True)
class Admitted:
    """The request left the queue; its first pass comes now."""

    id: str
    reused: list[int]  # positions of each row's prompt whose keys and values were there already


@dataclass(frozen=True)
class Refusal:
    """The request is wrong, or larger than this engine could ever take."""

    id: str
    message: str


@dataclass(slots=True)  # these two are made for every token, and what is frozen takes several times as long to make
class Write:
    """One committed token."""

    at: int
    token: int
    logp: float | None  # nats, under the plain prediction of the pass that committed it; None: nothing spoke of it
    top: list[tuple[int, float]] = field(default_factory=list)  # likeliest tokens of that pass, best first


@dataclass(slots=True)
class Step:
    """What one step changed in one row. Rows that waited say nothing."""

    id: str
    row: int
    forwards: int  # passes that the row had a use for, so far
    block: int  # from 1
    step: int  # of the block, from 1
    writes: list[Write]
    taken_back: list[int]  # positions that became blank again
    final: int  # every position before this one will never change again
    seconds: float = 0.0  # since the request was admitted


@dataclass(frozen=True)
class Done:
    """A row is finished; nothing more is said of it."""

    id: str
    row: int
    reason: str  # "end": it ended its text, "length": every blank is written, "cancelled", or "failed"
    forwards: int
    seconds: float  # since it was admitted
    waited: float  # seconds in the queue before that
    message: str = ""  # of a failure


@dataclass(frozen=True)
class Load:
    """How busy the engine is; told at least once a second while anything runs, and when it falls idle."""

    waiting: int  # requests in the queue
    running: int  # rows being written
    memory: int  # bytes of keys and values in use by running requests
    kept: int  # bytes of finished prefixes kept for reuse; given up when room is needed
    rounds: int  # rounds of passes since the start
    passes: int  # model calls since the start
    tokens: int  # tokens committed since the start
    reused: int  # prompt positions that were not computed again, since the start


@dataclass(frozen=True)
class Drained:
    """Everything taken is finished."""


Order = Submit | Cancel | Drain
Event = Ready | Admitted | Refusal | Step | Done | Load | Drained
KINDS = {kind.__name__.lower(): kind for kind in (*get_args(Order), *get_args(Event))}


SPELLED = json.JSONEncoder(default=vars, separators=(",", ":"), allow_nan=False)


def line(message: Order | Event) -> bytes:
    """One line of JSON: an object, or an array for a step, of which there is one for every token."""
    if isinstance(message, Step):
        writes = [[each.at, each.token, each.logp, each.top] for each in message.writes]
        numbers = message.row, message.forwards, message.block, message.step
        content: Any = [message.id, *numbers, writes, message.taken_back, message.final, message.seconds]
    else:
        content = {"is": type(message).__name__.lower(), **vars(message)}
    return SPELLED.encode(content).encode() + b"\n"


def read(text: bytes) -> Order | Event:
    """What `line` wrote."""
    content = json.loads(text)
    if isinstance(content, list):
        name, row, forwards, block, step, writes, taken_back, final, seconds = content
        made = [Write(at, token, logp, [(t, p) for t, p in top]) for at, token, logp, top in writes]
        return Step(name, row, forwards, block, step, made, taken_back, final, seconds)
    kind = KINDS[content.pop("is")]
    if kind is Submit:
        content["rows"] = [Row(**row) for row in content["rows"]]
    return kind(**content)
