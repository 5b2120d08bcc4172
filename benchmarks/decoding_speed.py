"""Decoding speed by cache, beside autoregressive decoding of the same weights and a plain sampler; random weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from measure import Report, interleaved, spread, threads
from study.passes import Autoregressive, Bare, Loop, Plain, Task, single
from study.shapes import SHAPES, network, parameters

from unveil.attention import FULL, Attention
from unveil.nn.fixed import Fixed
from unveil.nn.transformer import Transformer

NOTE = "speed only: random weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BARE = " (bare forwards)"


def loops(net: Transformer, task: Task) -> dict[str, Loop]:
    """The library's ways to write the same number of tokens. One token at a time there is no diffusion left."""
    leader = Loop(net, task, "causal", Attention("leader", task.block))
    return {
        "recompute, full attention": Loop(net, task, "recompute", FULL),
        "dual cache, full attention": Loop(net, task, "dual", FULL),
        "prefix cache, full attention": Loop(net, task, "prefix", FULL),
        "causal cache, leader": leader,
        "autoregressive, leader, block 1": single(leader),
    }


def agreement(ours: torch.Tensor, plain: torch.Tensor, prompt: int) -> float:
    """Share of equal tokens: both commit the surest, but near ties round differently."""
    return float((ours[:, prompt:] == plain[:, prompt:]).float().mean())


@dataclass
class Compiled:
    """A loop while the network's small passes are compiled."""

    net: Transformer
    loop: Loop
    fixed: Fixed = field(init=False)

    def __post_init__(self):
        self.fixed = Fixed(self.net)
        self.run()  # compiles

    def run(self) -> torch.Tensor:
        self.net.fixed = self.fixed
        try:
            return self.loop.run()
        finally:
            self.net.fixed = None


def study(
    name: str, task: Task, repeats: int, dtype: torch.dtype, skip: Sequence[str] = (), compile: bool = False
) -> dict:
    """Every way of decoding on one shape; with `compile` those that have a store also compiled."""
    net = network(SHAPES[name], FULL).to(dtype)
    chosen = {arm: loop for arm, loop in loops(net, task).items() if not any(word in arm for word in skip)}
    plain, alone = Plain(net, task), Autoregressive(net, task)
    forwards = {arm: len(loop.watch().passes) for arm, loop in chosen.items()}  # also warms up
    work: dict[str, Callable[[], object]] = {arm: loop.run for arm, loop in chosen.items()}
    for arm, loop in list(chosen.items()):
        if compile and "recompute" not in arm:
            work[f"{arm}, compiled"] = Compiled(net, loop).run
            forwards[f"{arm}, compiled"] = forwards[arm]
    blocks = -(-task.length // task.block)
    if "plain" not in skip:
        work["plain, float64"] = plain.run
        forwards["plain, float64"] = sum(min(task.steps, task.block) for _ in range(blocks))
    work["autoregressive, bare loop"] = alone.run
    forwards["autoregressive, bare loop"] = task.length
    with torch.inference_mode():
        tokens = torch.cat([task.prompt, task.prompt.new_zeros(len(task.prompt), task.length)], dim=1)
        inside = {}
        for arm, loop in chosen.items():
            watched = loop.watch()
            inside[arm] = watched.seconds
            work[arm + BARE] = Bare(net, tokens, watched.passes).run
    seconds = interleaved(work, repeats, warmup=0)
    written = len(task.prompt) * task.length
    arms = {}
    for arm, count in forwards.items():
        time = spread(seconds[arm])["median"]
        arms[arm] = {
            "seconds": seconds[arm],
            "tokens": written,
            "tokens_per_second": written / time,
            "forwards": count,
            "tokens_per_forward": written / count,
            "ms_per_forward": 1000 * time / count,
        }
        if arm + BARE in seconds:
            bare = spread(seconds[arm + BARE])["median"]
            arms[arm] |= {
                "bare_seconds": seconds[arm + BARE],
                "bare_ms_per_forward": 1000 * bare / count,
                "overhead": time / bare - 1,
                "watched_seconds_in_the_network": inside[arm],
            }
    found = {
        "shape": name,
        "note": NOTE,
        "parameters": parameters(net),
        "dtype": str(dtype).removeprefix("torch."),
        "rows": len(task.prompt),
        "prompt": task.prompt.shape[1],
        "length": task.length,
        "block": task.block,
        "steps": task.steps,
        "arms": arms,
    }
    if "plain, float64" in work and "recompute, full attention" in chosen:
        same = agreement(chosen["recompute, full attention"].run(), plain.run(), task.prompt.shape[1])
        found["plain_agrees_with_recompute"] = same
    return found


def show(report: Report, found: dict) -> None:
    size = f"{found['rows']} x ({found['prompt']} + {found['length']})"
    title = (
        f"{found['shape']}: {found['parameters'] / 1e6:.1f} M parameters, {found['dtype']}, {NOTE}; "
        f"{size}, blocks of {found['block']} in {found['steps']} steps"
    )
    arms = found["arms"]
    slowest = arms.get("plain, float64", {}).get("tokens_per_second")
    columns = ("decoding", "tokens/s", "forwards", "ms per forward", "bare forward, ms", "overhead", "over plain")
    rows = []
    for arm, one in arms.items():
        overhead = f"{one['overhead']:+.1%}" if "overhead" in one else None
        times = f"{one['tokens_per_second'] / slowest:.2f}x" if slowest else None
        bare = one.get("bare_ms_per_forward")
        rows.append((arm, one["tokens_per_second"], one["forwards"], one["ms_per_forward"], bare, overhead, times))
    report.table(title, columns, rows)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["15M", "llada-vocabulary", "qwen2.5-0.5B"])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64, help="positions given")
    parser.add_argument("--length", type=int, default=64, help="positions written")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="predictions a block")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each way, in turns")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--skip", nargs="*", default=["prefix"], help="leave out names with these words")
    parser.add_argument("--compile", action="store_true", help="also with passes of fixed width compiled")
    parser.add_argument("--results", type=Path, default=None, help="folder of the result files")
    given = parser.parse_args(words)
    threads(given.threads)
    report = Report("decoding_speed", given.results) if given.results else Report("decoding_speed")
    found = []
    for name in given.shape:
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(SHAPES[name].vocab - 1, (given.rows, given.prompt), generator=generator)
        task = Task(prompt, given.length, given.block, given.steps)
        found.append(study(name, task, given.repeats, DTYPES[given.dtype], given.skip, given.compile))
        show(report, found[-1])
    report.write({"note": NOTE, "shapes": found})


if __name__ == "__main__":
    main()
