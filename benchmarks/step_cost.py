"""What every decoder costs a step outside the network, beside a forward of the same width; random logits."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from measure import RESULTS, Report, threads
from study.shapes import SHAPES, network
from torch import Tensor

from unveil import spec
from unveil.attention import FULL, Attention
from unveil.canvas import Canvas
from unveil.context import EVERYTHING, Context, Window
from unveil.denoiser import Denoiser
from unveil.sample import prepare

NOTE = "speed only: random weights and random logits"
LEADERS = ("speculative",)  # decoders that need leader attention


class Table(Denoiser):
    """Answers every pass at once with rows of a table, and notes how long that took: what remains is the step."""

    def __init__(self, vocab: int, attention: Attention, rows: int = 512):
        super().__init__()
        self.mask_id, self.attention, self.eos_id, self.bos_id = vocab - 1, attention, 0, 0
        # A few tokens stand out at each position, as they do in a trained network.
        self.table = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))
        best = torch.arange(rows) * 97 % (vocab - 2) + 1
        self.table[torch.arange(rows), best] += torch.linspace(10, 22, rows)[torch.randperm(rows)]
        self.shifted = attention.leads
        self.seconds, self.read = 0.0, 0

    def forward(self, tokens: Tensor, ctx: Context = EVERYTHING) -> Tensor:
        began = time.perf_counter()
        assert ctx.read is not None
        said = self.table[ctx.read % len(self.table)]
        self.seconds += time.perf_counter() - began
        self.read = max(self.read, len(ctx.read))
        return said


def steps(decoder: str, vocab: int, prompt: int, length: int, block: int) -> tuple[list[float], int, int]:
    """Seconds outside the network of each step, the most positions read in a pass, and the passes of a step."""
    model = Table(vocab, Attention("leader", block) if decoder in LEADERS else FULL)
    tokens = torch.randint(1, vocab - 1, (1, prompt), generator=torch.Generator().manual_seed(1))
    canvas = Canvas.answering(tokens, length, model.mask_id, torch.zeros(1, dtype=torch.long))
    run, found = prepare(model, canvas, decoder, block=block), []
    with torch.inference_mode():
        while True:
            began, model.seconds = time.perf_counter(), 0.0
            asked = next(run, None)
            if asked is None:
                return found, model.read, max(1, round(canvas.forwards / max(1, len(found))))
            while asked is not None:
                asked = run.send(model(asked.tokens, asked.context))
            found.append(time.perf_counter() - began - model.seconds)


@torch.inference_mode()
def forward(vocab: int, width: int, read: int, repeats: int) -> float:
    """Seconds of a pass of the 0.5 B shape over `width` positions of which `read` are read, the median of several."""
    net = network(replace(SHAPES["qwen2.5-0.5B"], vocab=vocab), FULL)
    tokens, times = torch.randint(vocab - 1, (1, width)), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        net(tokens, Context(Window(0, width), read=torch.arange(min(read, width))))
        times.append(time.perf_counter() - began)
    return median(times[1:])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decoders", nargs="+", default=spec.names("decoders"))
    parser.add_argument("--vocabulary", type=int, default=126_464)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(words)
    threads(given.threads)
    found, bare = {}, {}
    for decoder in given.decoders:
        every, read, passes = steps(decoder, given.vocabulary, given.prompt, given.length, given.block)
        width = given.block if read <= given.block else given.length
        if width not in bare:
            bare[width] = forward(given.vocabulary, width, width, given.repeats)
        found[decoder] = {
            "milliseconds": 1000 * median(every),
            "worst_milliseconds": 1000 * max(every),
            "read": read,
            "steps": len(every),
            "passes_per_step": passes,
            "forward_milliseconds": 1000 * bare[width] * passes,
            "share": median(every) / (bare[width] * passes),
        }
    report = Report("step_cost", given.results)
    title = (
        f"A step outside the network, {given.vocabulary:,} tokens in the vocabulary, blocks of {given.block}, "
        f"{given.prompt} + {given.length} positions; {NOTE}"
    )
    columns = ("decoder", "ms a step", "worst", "positions read", "passes a step", "forward of that width, ms", "share")
    names = ("milliseconds", "worst_milliseconds", "read", "passes_per_step", "forward_milliseconds")
    rows = [(name, *(one[n] for n in names), f"{one['share']:.1%}") for name, one in found.items()]
    report.table(title, columns, rows)
    report.write({"note": NOTE, "vocabulary": given.vocabulary, "decoders": found})


if __name__ == "__main__":
    main()
