"""Engines of tiny models, and what came of their requests, checked as it comes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from models import MASK, prompts, tiny

from unveil import spec
from unveil.attention import FULL
from unveil.canvas import Canvas
from unveil.sample import denoise
from unveil.serve.engine import Engine
from unveil.serve.messages import Admitted, Done, Drained, Load, Refusal, Row, Step, Submit

END = 3
KINDS = {"full": ("full", None, False), "shifted": ("full", None, True), "block": ("block", 4, False)}
KINDS |= {"leader": ("leader", 4, True), "block shifted": ("block", 4, True)}


def model(kind: str, seed: int = 0, end: int | None = None):
    name, block, shifted = KINDS[kind]
    found = tiny(name, block, shifted=shifted, seed=seed)
    found.eos_id = end
    return found


def engine(kind: str = "leader", memory: int | None = 1 << 30, seed: int = 0, end: int | None = None) -> Engine:
    return Engine(model(kind, seed, end), name="tiny", memory=memory)


def blanks(length: int, count: int, seed: int = 1) -> list[int]:
    """A prompt with `count` blanks behind it."""
    return prompts(1, length, seed)[0].tolist() + [MASK] * count


def ask(name: str, *rows: list[int], seed: int = 0, **options) -> Submit:
    return Submit(name, [Row(row, seed + number) for number, row in enumerate(rows)], **options)


@dataclass
class Line:
    """What an engine said of one row."""

    tokens: list[int]
    given: list[bool]
    final: int = 0
    steps: list[Step] = field(default_factory=list)
    done: Done | None = None


@dataclass
class Watch:
    """An engine and everything that it said. What it said is final must not change."""

    engine: Engine
    lines: dict[tuple[str, int], Line] = field(default_factory=dict)
    admitted: dict[str, int] = field(default_factory=dict)  # the round
    reused: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)
    drained: int = 0
    rounds: int = 0

    def submit(self, order: Submit) -> None:
        for number, row in enumerate(order.rows):
            self.lines[order.id, number] = Line(list(row.tokens), [token != MASK for token in row.tokens])
        self.engine.submit(order)

    def step(self) -> None:
        self.rounds += 1
        for event in self.engine.step():
            match event:
                case Step():
                    self.hear(event)
                case Done():
                    assert self.lines[event.id, event.row].done is None
                    self.lines[event.id, event.row].done = event
                case Admitted():
                    self.admitted[event.id], self.reused[event.id] = self.rounds, event.reused
                case Refusal():
                    self.refused[event.id] = event.message
                case Load():
                    self.loads.append(event)
                case Drained():
                    self.drained += 1

    def hear(self, step: Step) -> None:
        line = self.lines[step.id, step.row]
        assert line.done is None, "nothing is said of a row that is done"
        assert step.writes or step.taken_back
        for write in step.writes:
            assert write.at >= line.final, "what was final has changed"
            assert not line.given[write.at]
            line.tokens[write.at] = write.token
        for at in step.taken_back:
            assert at >= line.final, "what was final was taken back"
            line.tokens[at] = MASK
        assert line.final <= step.final <= len(line.tokens)
        assert MASK not in line.tokens[: step.final]
        line.final = step.final
        line.steps.append(step)

    def finish(self, most: int = 2000) -> Watch:
        while not self.engine.idle:
            self.step()
            assert self.rounds < most
        assert self.engine.used == 0
        assert not self.engine.tasks
        assert not self.engine.cohorts
        assert not self.engine.prefills
        assert all(line.done for (name, _), line in self.lines.items() if name not in self.refused)
        return self

    def tokens(self, name: str, row: int = 0) -> list[int]:
        return self.lines[name, row].tokens

    def reason(self, name: str, row: int = 0) -> str:
        done = self.lines[name, row].done
        assert done is not None
        return done.reason


def run(kind: str, *orders: Submit, **options) -> Watch:
    """All at once."""
    watch = Watch(engine(kind, **options))
    for order in orders:
        watch.submit(order)
    return watch.finish()


def alone(network, order: Submit, number: int = 0) -> list[int]:
    """What the library writes into a row when nobody else is there."""
    look = FULL if order.full else network.attention
    row = torch.tensor(order.rows[number].tokens)
    canvas = Canvas.filling([row], MASK, torch.tensor([order.rows[number].seed]), look)
    cache = order.cache or ("causal" if look.exact else "recompute")
    block = look.block if order.block is None else order.block
    for _ in denoise(network, canvas, order.decoder, cache=cache, block=block, steps=order.steps, guide=order.guide):
        pass
    return canvas.tokens[0, : len(row)].tolist()


def legal(kind: str, order: Submit) -> bool:
    """Does the library take it?"""
    try:
        alone(model(kind), order)
    except ValueError:
        return False
    return True


def decoders() -> list[str]:
    return [*spec.names("decoders"), "hierarchy(remask=0.5)", "confidence(temperature=0.8)", "prophet(inner='saber')"]
