"""The server under load: throughput and waiting by number of clients, beside offline batches; memory; fairness."""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import string
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from measure import ROOT, Report, threads, timed
from study.clients import Answer, Heard, Server, load, serving
from study.shapes import SHAPES, network, parameters

from unveil import hub
from unveil.attention import Attention
from unveil.codecs.text import Text
from unveil.denoiser import Denoiser
from unveil.sample import generate

MODULES = (textwrap, string, inspect, json, statistics, argparse, tempfile)  # whose sources the prompts are taken from
SPEED_ONLY = "speed only: random weights"


@dataclass(frozen=True)
class Work:
    """What every client asks for."""

    length: int
    prompt: int  # tokens given
    decoder: str
    block: int | None = None
    steps: int | None = None

    def prompts(self, text: Text, count: int) -> list[list[int]]:
        """Stretches of real code, all different."""
        start = [] if text.start_id is None else [text.start_id]
        source = text.encode("\n".join(inspect.getsource(module) for module in MODULES))
        stride = (len(source) - self.prompt) // count
        assert stride > 0
        size = self.prompt - len(start)
        return [start + source[at : at + size] for at in range(0, stride * count, stride)]

    def body(self, prompt: list[int], seed: int) -> dict:
        chosen = {"decoder": self.decoder, "block": self.block, "steps": self.steps}
        given = {name: value for name, value in chosen.items() if value is not None}
        return {"prompt": prompt, "max_tokens": self.length, "seed": seed, **given}


class Offline:
    """The same requests as one batch in this process, nothing else running: what a server can hope for."""

    def __init__(self, model: Denoiser, work: Work, prompts: Sequence[Sequence[int]], seed: int):
        self.model, self.work, self.seed = model, work, seed
        self.prompts = [torch.tensor(prompt) for prompt in prompts]
        self.tokens = torch.zeros(0)

    def run(self) -> None:
        block = self.work.block or self.model.attention.block
        cache = self.model.attention.cache
        options = {"cache": cache, "block": block, "steps": self.work.steps, "seed": [self.seed] * len(self.prompts)}
        self.tokens = generate(self.model, self.prompts, self.work.length, self.work.decoder, **options)

    def answers(self, text: Text) -> list[str]:
        """What was written, up to the end of each text."""
        return [text.decode(self.written(row)) for row in range(len(self.prompts))]

    def written(self, row: int) -> list[int]:
        after = len(self.prompts[row])
        tokens = self.tokens[row, after : after + self.work.length].tolist()
        return tokens[: tokens.index(self.model.eos_id)] if self.model.eos_id in tokens else tokens

    @property
    def count(self) -> int:
        return sum(len(self.written(row)) for row in range(len(self.prompts)))


def summary(answers: Sequence[Answer], seconds: float, spent: dict[str, float]) -> dict[str, float]:
    """`spent` is the processor time of each process."""
    tokens = sum(answer.tokens for answer in answers)
    return {
        **{f"{name}_microseconds": 1e6 * each / tokens for name, each in spent.items()},
        "tokens_per_second": tokens / seconds,
        "tokens_per_forward": tokens / max(sum(answer.forwards for answer in answers), 1),
        **{f"first_{q}": float(np.percentile([a.first for a in answers], q)) for q in (50, 95)},
        **{f"whole_{q}": float(np.percentile([a.seconds for a in answers], q)) for q in (50, 95)},
    }


def middle(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over several runs."""
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def table(
    server: Server, model: Denoiser, text: Text, work: Work, counts: Sequence[int], rounds: int, repeats: int
) -> dict[str, object]:
    """Every number of clients, in turns with the offline batches of the same width, by one thread and by all."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    offline: dict[int, list[float]] = {count: [] for count in counts}
    equal: dict[int, list[bool]] = {count: [] for count in counts}
    for turn in range(1 + repeats):  # the first is a warm-up
        for count in counts:
            prompts = work.prompts(text, count * rounds)
            bodies = [work.body(prompt, turn) for prompt in prompts]
            before = server.rounds()
            answers, seconds, spent = load(server, bodies, count)
            paces = {"rounds": server.rounds() - before}
            batch = Offline(model, work, prompts[:count], turn)
            fastest = timed(batch.run)
            if torch.get_num_threads() > 1:  # small passes are faster without company
                paces["offline_all_threads"], most = batch.count / fastest, torch.get_num_threads()
                threads(1)
                alone = timed(batch.run)
                threads(most)
                paces["offline_one_thread"], fastest = batch.count / alone, min(fastest, alone)
            if turn:
                found[count].append({**summary(answers, seconds, spent), **paces})
                offline[count].append(batch.count / fastest)
                said = [answer.text for answer in answers[:count]]
                equal[count] += [one == other for one, other in zip(said, batch.answers(text), strict=True)]
    rows = {}
    for count in counts:
        whole, best = middle(found[count]), statistics.median(offline[count])
        ratio = statistics.median(a["tokens_per_second"] / b for a, b in zip(found[count], offline[count], strict=True))
        same = sum(equal[count]) / len(equal[count])
        rows[count] = {**whole, "offline": best, "of_offline": ratio, "equal_to_offline": same, "runs": found[count]}
    return {"clients": rows, **asdict(work)}


def show(report: Report, title: str, found: dict) -> None:
    columns = ("clients", "tokens/s", "over one", "offline batch, tokens/s", "of offline", "first text, ms p50", "p95")
    columns = (*columns, "whole, s p50", "p95", "tokens a forward", "answers equal to offline")
    rows = found["clients"]
    one = rows[min(rows)]["tokens_per_second"]
    lines = []
    for count, row in rows.items():
        first = [1000 * row[f"first_{q}"] for q in (50, 95)]
        times = [row[f"whole_{q}"] for q in (50, 95)]
        rate = row["tokens_per_second"]
        share = (f"{rate / one:.2f}x", row["offline"], f"{row['of_offline']:.2f}")
        lines.append((count, rate, *share, *first, *times, row["tokens_per_forward"], f"{row['equal_to_offline']:.0%}"))
    report.table(title, columns, lines)
    spent = [[row[f"{name}_microseconds"] for name in ("engine", "http", "clients")] for row in rows.values()]
    turns = [row["rounds"] for row in rows.values()]
    paces = [[row.get(f"offline_{name}") for name in ("one_thread", "all_threads")] for row in rows.values()]
    report.table(
        f"{title}: where the time goes",
        (
            "clients",
            "rounds",
            "engine, processor us a token",
            "HTTP",
            "clients",
            "batch by one thread, tokens/s",
            "by all",
        ),
        [(count, each, *one, *other) for count, each, one, other in zip(rows, turns, spent, paces, strict=True)],
    )


def memory(server: Server, text: Text, work: Work, count: int, clients: int) -> list[dict[str, float]]:
    """Resident bytes of both processes while `count` requests are answered."""
    prompts = work.prompts(text, 97)
    bodies = [work.body(prompts[number % 97], number) for number in range(count)]
    found: list[dict[str, float]] = []

    def look(heard: Heard) -> None:
        if heard.request % max(count // 200, 1) == 0:
            found.append({"request": heard.request, **server.resident()})

    load(server, bodies, clients, look)
    return found


def figure(found: Sequence[dict[str, float]], path: Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    for name, colour in (("engine", "#3060a0"), ("http", "#c07020")):
        axes.plot([one["request"] for one in found], [one[name] / 2**20 for one in found], label=name, color=colour)
    axes.set(xlabel="requests answered", ylabel="resident memory, MiB", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, dpi=110)


def fairness(server: Server, text: Text, work: Work, long: int) -> dict[str, float]:
    """A short request alone, and beside one that writes `long` tokens."""
    short = work.body(work.prompts(text, 1)[0], 1) | {"max_tokens": 16}
    alone = statistics.median(load(server, [short], 1)[0][0].seconds for _ in range(5))
    found: list[Answer] = []
    beside = [work.body(work.prompts(text, 2)[1], 2) | {"max_tokens": long}, *[short] * 5]
    # two clients: the first is busy with the long request while the second asks the short one again and again
    found = load(server, beside, 2)[0]
    shorts = [answer.seconds for answer in found[1:]]
    return {
        "alone": alone,
        "beside": statistics.median(shorts),
        "forwards": found[1].forwards,
        "long_seconds": found[0].seconds,
    }


def random_checkpoint(shape: str, block: int, text: Text, folder: Path, dtype: torch.dtype) -> Path:
    """A leader model of random weights in a folder, with a tokenizer whose tokens are among its own."""
    # Without biases, whose share of a pass cannot be measured, it is a Llama and can be saved as one.
    net = network(replace(SHAPES[shape], biases=frozenset()), Attention("leader", block)).to(dtype)
    return hub.save(net, folder / shape, text)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=2, help="requests of each client in a run")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, in turns")
    parser.add_argument("--length", type=int, default=63, help="tokens written")
    parser.add_argument("--prompt", type=int, default=48, help="tokens given")
    parser.add_argument("--decoders", nargs="+", default=["threshold(tau=0.9)"])
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2.5-0.5B", help="of the random weights")
    parser.add_argument("--shape-clients", type=int, nargs="*", default=[1, 4, 16, 64], help="none: leave it out")
    parser.add_argument("--shape-length", type=int, default=16)
    parser.add_argument("--shape-repeats", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the random weights")
    parser.add_argument("--requests", type=int, default=2000, help="for the curve of memory; 0: leave it out")
    parser.add_argument("--threads", type=int, default=2, help="of the offline batches, at most")
    parser.add_argument("--stream-interval", default="50", help="of the server, milliseconds")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "serve-memory.png")
    given = parser.parse_args(words)
    threads(given.threads)
    report = Report("serve", given.results) if given.results else Report("serve")
    options = ("--queue", "1000", "--timeout", "3600", "--stream-interval", given.stream_interval)
    numbers: dict[str, object] = {"threads": given.threads, "stream_interval": given.stream_interval}
    model, text = hub.load("stdlib-dlm")
    model.eval()
    with serving("stdlib-dlm", *options) as server:
        tables = {}
        for decoder in given.decoders:
            work = Work(given.length, given.prompt, decoder)
            tables[decoder] = table(server, model, text, work, given.clients, given.rounds, given.repeats)
            title = f"stdlib-dlm, {work.prompt} + {work.length} tokens, {decoder}"
            show(report, title, tables[decoder])
        numbers["stdlib-dlm"] = tables
        single = Work(given.length, given.prompt, "confidence", 1)
        numbers["stdlib-dlm autoregressive"] = table(
            server, model, text, single, given.clients, given.rounds, given.repeats
        )
        show(
            report,
            "stdlib-dlm, the same in its autoregressive mode (block 1)",
            numbers["stdlib-dlm autoregressive"],
        )
        work = Work(given.length, given.prompt, given.decoders[0])
        numbers["fairness"] = found = fairness(server, text, work, 900)
        report.table(
            "a request of 16 tokens",
            ("alone, s", "beside one of 900 tokens, s", "forwards", "the long one, s"),
            [(found["alone"], found["beside"], found["forwards"], found["long_seconds"])],
        )
    report.write(numbers)  # what is measured is kept, whatever comes of the rest
    if given.requests:
        with serving("stdlib-dlm", *options) as server:
            small = Work(16, given.prompt, given.decoders[0])
            numbers["memory"] = curve = memory(server, text, small, given.requests, 16)
        figure(curve, given.figure)
        kept = [curve[len(curve) // 4], curve[-1]]
        report.table(
            f"resident memory over {given.requests} requests, MiB",
            ("process", "after a quarter", "at the end"),
            [(name, *(one[name] / 2**20 for one in kept)) for name in ("engine", "http")],
        )
    report.write(numbers)
    if given.shape_clients:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[given.dtype]
        with tempfile.TemporaryDirectory() as folder:
            place = random_checkpoint(given.shape, 8, text, Path(folder), dtype)
            net = hub.load_model(place).eval()
            with serving(str(place), *options) as server:
                # Random weights are sure of nothing: a quota writes as many tokens a step as is usual.
                work = Work(given.shape_length, given.prompt, "confidence", steps=4)
                found = table(server, net, text, work, given.shape_clients, 1, given.shape_repeats)
        numbers[given.shape] = {**found, "note": SPEED_ONLY, "parameters": parameters(net), "dtype": given.dtype}
        size = f"{parameters(net) / 1e6:.0f} M parameters, {given.dtype}, {SPEED_ONLY}"
        show(report, f"{given.shape}: {size}; {work.prompt} + {work.length} tokens, {work.decoder}", found)
    report.write(numbers)


if __name__ == "__main__":
    main()
