"""What the server's engine adds to the passes: its processor time a token beside one batch of the same requests."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Report, threads
from serve import Offline, Work

from unveil import hub
from unveil.codecs.text import Text
from unveil.context import Context
from unveil.denoiser import Denoiser
from unveil.nn.grow import bare
from unveil.serve.engine import Engine
from unveil.serve.messages import Done, Row, Step, Submit, line, read

MEMORY = 2 << 30  # bytes, so that nobody waits for room


class Network:
    """Counts the calls of a network, their positions and the processor time inside them."""

    def __init__(self, model: Denoiser):
        self.calls = self.positions = 0
        self.seconds = self.began = 0.0
        self.hooks = [
            bare(model).register_forward_pre_hook(self.enter),
            bare(model).register_forward_hook(self.leave),
        ]

    def enter(self, _, given: tuple) -> None:
        tokens, context = given[0], given[1] if len(given) > 1 else Context()
        self.calls += 1
        self.positions += len(tokens) * context.over(tokens.shape[1]).width
        self.began = time.process_time()

    def leave(self, _, __, ___) -> None:
        self.seconds += time.process_time() - self.began

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


@dataclass(frozen=True)
class Way:
    """How requests come to the engine."""

    name: str
    rounds: int = 1  # requests of each client, the next when the last is answered
    apart: bool = False  # no two of them before the same round


WAYS = (
    Way("at once"),
    Way("a round apart", apart=True),
    Way("at once, then each in turn", rounds=3),
    Way("a round apart, then each in turn", rounds=3, apart=True),
)


def engine(model: Denoiser, text: Text, work: Work, prompts: Sequence[list[int]], clients: int, way: Way) -> dict:
    """Answer all prompts by an engine of its own, orders and events spelled as between the two processes."""
    found = Engine(model, name="cost", start_id=text.start_id, memory=MEMORY, text=text)
    waiting, free, tokens, canvases = deque(enumerate(prompts)), clients, 0, 0
    while waiting or not found.idle:
        for _ in range(min(free, 1) if way.apart else free):
            if waiting:
                number, prompt = waiting.popleft()
                row = Row([*prompt, *[model.mask_id] * work.length], 0)
                order = Submit(
                    f"r{number}", [row], work.decoder, block=work.block, steps=work.steps, top=None, ends=False
                )
                submitted = read(line(order))
                assert isinstance(submitted, Submit)
                found.submit(submitted)
                free -= 1
        events = found.step()
        said = [line(event) for event in events]
        assert len(said) == len(events)
        canvases += len(found.cohorts)
        free += sum(isinstance(event, Done) for event in events)
        tokens += sum(len(event.writes) for event in events if isinstance(event, Step))
    assert tokens == len(prompts) * work.length
    return {"rounds": found.rounds, "canvases": canvases / found.rounds}


def measured(model: Denoiser, tokens: int, run: Callable[[], dict]) -> dict[str, float]:
    """Microseconds of processor time a token, of them inside the network, and what the passes were."""
    network, began = Network(model), time.process_time()
    counted = run()
    spent = time.process_time() - began
    network.close()
    inside = {"calls": network.calls, "positions": network.positions / tokens}
    return {"all": 1e6 * spent / tokens, "network": 1e6 * network.seconds / tokens, **inside, **counted}


def compared(model: Denoiser, text: Text, work: Work, clients: int, repeats: int) -> dict[str, dict[str, float]]:
    """The batch and every way, in turns."""
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(1 + repeats):  # the first is a warm-up
        prompts = work.prompts(text, clients * max(way.rounds for way in WAYS))
        batch = Offline(model, work, prompts[:clients], turn)

        def whole(batch: Offline = batch) -> dict:
            batch.run()
            return {}

        row = {"one batch": measured(model, clients * work.length, whole)}
        for way in WAYS:
            some = prompts[: clients * way.rounds]
            run = lambda some=some, way=way: engine(model, text, work, some, clients, way)
            row[way.name] = measured(model, len(some) * work.length, run)
        for name, one in row.items() if turn else ():
            found.setdefault(name, []).append({**one, "of_batch": row["one batch"]["all"] / one["all"]})
    return {name: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for name, runs in found.items()}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stdlib-dlm")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--length", type=int, default=63, help="tokens written")
    parser.add_argument("--prompt", type=int, default=48, help="tokens given")
    parser.add_argument("--decoder", default="threshold(tau=0.9)")
    parser.add_argument("--repeats", type=int, default=3, help="in turns; medians are shown")
    parser.add_argument("--results", type=Path)
    given = parser.parse_args(words)
    threads(1)
    model, text = hub.load(given.model)
    model.eval()
    report = Report("engine_cost", given.results) if given.results else Report("engine_cost")
    numbers: dict[str, object] = {"clients": given.clients}
    columns = ("requests come", "us a token", "of the batch", "in the network, us", "rounds", "canvases a round")
    for work in (Work(given.length, given.prompt, given.decoder), Work(given.length, given.prompt, "confidence", 1)):
        found = compared(model, text, work, given.clients, given.repeats)
        name = f"{work.decoder}, block {work.block or model.attention.block}"
        numbers[name] = found
        report.table(
            f"{given.model}, {given.clients} clients, {work.prompt} + {work.length} tokens, {name}: processor time",
            (*columns, "positions a token"),
            [
                (way, one["all"], f"{one['of_batch']:.2f}", one["network"], one.get("rounds", one["calls"]))
                + (one.get("canvases", 1.0), one["positions"])
                for way, one in found.items()
            ],
        )
    report.write(numbers)


if __name__ == "__main__":
    main()
