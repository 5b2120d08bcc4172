"""What a run needs, on paper: memory for each way to spread it, speed, time, cost, and how often to save.

Bytes on one GPU, for P weights of which T are trained, S processes that share them, c bytes a number in matrix products
(2 in bfloat16, else 4) and r in the residual stream (4, or 2 where FSDP computes in bfloat16):

    weights     4 P / S                         float32; and where S = 1 in bfloat16 a copy of 2 P that autocast keeps
    optimiser   8 T / S                         AdamW's two moments
    average     4 T / S                         if `ema`
    gradients   4 T / S                         float32
    gathered    S > 1: c (2 block + rest) + (c + 4) max(block, rest)
                                                weights in use and fetched ahead, and the gradients being summed
    activations positions x layers x (attention + MLP), the last MLP's for the rows read alone; with `checkpointing`
                positions x layers x r E. Attention keeps r 2 E + c (2 n E + 3 Q + 4 K) bytes a position, the MLP
                r 2 E + c (2 n E + 4 F), where n = 1 if autocast copies float32 input, else 0
    scores      rows x queries x keys x (1 + layers x c), if the rule is a matrix: once as bits, then as numbers
    logits      rows read x V x 2 c               themselves and their gradient; or, with
                `checkpointing`, one block computed again, attention + MLP + 3 c F a position, if that is more

E width, Q and K widths of queries and of keys, F hidden, V vocabulary. The peak is weights + optimiser + average +
gathered + max(activations + scores + logits, gradients), or their sum when there are several micro-batches.

Floating-point operations for a token (Kaplan et al., 2001.08361): 6 x weights in blocks x copies + 6 x E x V x read
+ 12 x layers x Q x keys x copies; 8 and 16 in blocks with `checkpointing`, which computes them forward twice.
Time between checkpoints: sqrt(2 x cost x time between failures) (Young, 1974; Daly, 2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ..nn.transformer import Shape, Transformer
from ..objectives import Objective
from ..objectives.autoregressive import Autoregressive
from ..objectives.block import Block
from ..objectives.leader import Leader
from .recipe import Recipe

LADDER = {
    # vocabulary, width, layers, heads, key-value heads, hidden, head size
    "0.1B": Shape(49_152, 576, 30, 9, 3, 1536, 64, tied=True),  # SmolLM-135M
    "0.5B": Shape(151_936, 896, 24, 14, 2, 4864, 64, tied=True, biases=frozenset({"qkv"})),  # Qwen2.5
    "1B": Shape(128_256, 2048, 16, 32, 8, 8192, 64, tied=True),  # Llama 3.2
    "3B": Shape(128_256, 3072, 28, 24, 8, 8192, 128, tied=True),  # Llama 3.2
    "7B": Shape(152_064, 3584, 28, 28, 4, 18_944, 128, biases=frozenset({"qkv"})),  # Qwen2.5
    "14B": Shape(152_064, 5120, 48, 40, 8, 13_824, 128, biases=frozenset({"qkv"})),  # Qwen2.5
    "32B": Shape(152_064, 5120, 64, 40, 8, 27_648, 128, biases=frozenset({"qkv"})),  # Qwen2.5
    "70B": Shape(128_256, 8192, 80, 64, 8, 28_672, 128),  # Llama 3.1
}
MODES = ("ddp", "hsdp", "fsdp")


@dataclass(frozen=True)
class Cluster:
    """What a run is to be planned for. Its numbers about speed and failures are assumptions, to be replaced."""

    gpus: int
    memory: float  # bytes of one GPU
    machine: int = 8  # GPUs in one machine
    low: bool = True  # matrix products in bfloat16
    peak: float = 989e12  # operations a second of one GPU: H100 SXM, dense bfloat16
    mfu: float = 0.4  # share of it that is reached, recomputing included
    link: float = 20e9  # bytes a second from one GPU to its host
    disk: float = 10e9  # bytes a second that all processes write together
    price: float = 2.5  # for a GPU hour
    mtbf: float = 50_000  # GPU hours between failures: 419 in 54 days on 16,384 GPUs (Llama 3, 2407.21783, 3.3.4)
    restart: float = 600  # seconds from a failure until training goes on

    def __post_init__(self):
        if self.gpus < 1 or self.machine < 1:
            raise ValueError(f"a plan needs at least one GPU in a machine, got {self.gpus} and {self.machine}")
        if self.gpus > self.machine and self.gpus % self.machine:
            raise ValueError(f"{self.gpus} GPUs are no multiple of the {self.machine} of one machine")
        if min(self.memory, self.peak, self.mfu, self.link, self.disk, self.mtbf) <= 0 or self.mfu > 1:
            raise ValueError("memory, peak, mfu, link, disk and mtbf of a plan are above 0, and mfu at most 1")

    def shards(self, mode: str) -> int:
        return {"ddp": 1, "fsdp": self.gpus, "hsdp": min(self.machine, self.gpus)}[mode]


@dataclass(frozen=True)
class Work:
    """What an objective makes of one position of a row."""

    copies: int = 1  # positions in the network
    read: float = 0.5  # of them looked at through the head
    keys: float = 1.0  # that a query is multiplied with, over the row's length
    dense: bool = False  # is the rule a matrix?


def work(objective: Objective) -> Work:
    """Of the objectives with one copy, half of the tokens are hidden on average."""
    match objective:
        case Autoregressive():
            return Work(read=1.0)
        case Block():
            return Work(2, 0.5, 1.5, True)
        case Leader(n=n, ar=ar):
            return Work(2, 0.5 * n / (n + 1) + (1.0 if ar else 1 / (n + 1)), 1.5, True)
        case _:
            return Work()


def counted(s: Shape) -> tuple[int, int, int]:
    """Weights in all, in one block, and outside of blocks."""
    plain = len([i for i in range(s.layers) if i in s.mixture.dense]) if s.mixture else s.layers
    kinds = [(replace(s, layers=1, mixture=None), plain)]
    if s.mixture:
        kinds.append((replace(s, layers=1, mixture=replace(s.mixture, dense=frozenset())), s.layers - plain))
    inner, rest = [], 0
    for shape, count in kinds:
        with torch.device("meta"):
            model = Transformer(shape)
        inner += [sum(p.numel() for p in model.blocks.parameters())] * count
        rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.blocks.parameters())
    return sum(inner) + rest, max(inner), rest


@dataclass(frozen=True)
class Bytes:
    """The memory of one GPU."""

    weights: float
    optimiser: float
    average: float
    gradients: float
    gathered: float
    activations: float  # with scores
    logits: float  # or a block computed again
    several: bool  # micro-batches

    @property
    def peak(self) -> float:
        passing = self.activations + self.logits
        top = passing + self.gradients if self.several else max(passing, self.gradients)
        return self.weights + self.optimiser + self.average + self.gathered + top


def needed(s: Shape, recipe: Recipe, objective: Objective, shards: int, gpus: int, low: bool) -> Bytes:
    """The memory of one of `gpus` processes that share the weights in groups of `shards`."""
    every, inner, rest = counted(s)
    does, sharded = work(objective), shards > 1
    c = 2 if low else 4
    r = 2 if low and sharded else 4
    micro = math.ceil(recipe.accumulate / gpus)
    rows = math.ceil(recipe.rows / gpus / micro)
    positions = rows * recipe.length * does.copies
    width, queries, keys = s.width, s.heads * s.head_size, s.kv_heads * s.head_size
    hidden = s.mixture.active * s.mixture.hidden + s.mixture.shared if s.mixture else s.hidden
    copied = 2 if low and not sharded else 0
    attention = r * 2 * width + c * (copied * width + 3 * queries + 4 * keys)
    mlp = r * 2 * width + c * (copied * width + 4 * hidden)
    again = recipe.checkpointing
    kept = s.layers * attention + (s.layers - 1 + min(does.read / does.copies, 1)) * mlp
    area = rows * recipe.length**2 * does.copies if does.dense else 0.0
    scores = area * (does.copies + (0 if again else s.layers * c * does.keys))
    logits = rows * recipe.length * does.read * s.vocab * 2 * c
    block = positions * (attention + mlp + 3 * c * hidden) + area * c * does.keys
    gathered = c * (2 * inner + rest) + (c + 4) * max(inner, rest) if sharded else 0.0
    return Bytes(
        weights=4 * every / shards + (2 * every if low and not sharded else 0),
        optimiser=8 * every / shards,
        average=4 * every / shards if recipe.ema else 0.0,
        gradients=4 * every / shards,
        gathered=gathered,
        activations=positions * (s.layers * r * width if again else kept) + scores,
        logits=max(logits, block) if again else logits,
        several=micro > 1,
    )


@dataclass(frozen=True)
class Plan:
    """One way to run a recipe on a cluster."""

    mode: str
    bytes: Bytes
    fits: bool
    weights: int
    speed: float  # tokens a second of all GPUs, at the assumed share of their peak
    bandwidth: float  # bytes a second that every GPU must send and receive for communication to hide behind work
    host: float  # bytes of a machine's memory while the model is read and while a checkpoint is written
    stop: float  # seconds that training stops for a checkpoint
    write: float  # seconds until it is on disk
    failures: float  # seconds between them
    every: float  # seconds between checkpoints
    lost: float  # share of the time that saving, repeating and starting again take

    def hours(self, tokens: float) -> float:
        """Of all GPUs at once, with what failures take."""
        return tokens / self.speed / (1 - self.lost) / 3600


def operations(s: Shape, recipe: Recipe, objective: Objective) -> float:
    """Floating-point operations for a token."""
    _, block, _ = counted(s)
    if s.mixture:
        block -= 3 * s.width * s.mixture.hidden * (s.mixture.experts - s.mixture.active)
    does = work(objective)
    scores = 2 * s.heads * s.head_size * recipe.length * does.keys  # twice over: with keys, and with values
    blocks = does.copies * s.layers * (block + scores)
    head = s.width * s.vocab * does.read
    return (8 if recipe.checkpointing else 6) * blocks + 6 * head


def plan(s: Shape, recipe: Recipe, objective: Objective, cluster: Cluster, mode: str) -> Plan:
    """The recipe's rows on the cluster in one mode. ValueError when they cannot be shared."""
    if recipe.rows % cluster.gpus:
        raise ValueError(f"{recipe.rows} rows a step cannot be shared equally by {cluster.gpus} GPUs: give other rows")
    shards, gpus = cluster.shards(mode), cluster.gpus
    need = needed(s, recipe, objective, shards, gpus, cluster.low)
    every, _, _ = counted(s)
    speed = gpus * cluster.peak * cluster.mfu / operations(s, recipe, objective)
    micro = math.ceil(recipe.accumulate / gpus)
    c = 2 if cluster.low else 4
    gathers = (2 * c + 4) * every * (1 - 1 / shards) * micro  # weights forward and backward, gradients once
    sums = 2 * 4 * every / shards * (1 - shards / gpus)  # of the shares between replicas
    seconds = recipe.rows * recipe.length / speed
    saved = (16 if recipe.ema else 12) * every / shards
    stop, write = saved / cluster.link, saved * shards / cluster.disk
    failures = 3600 * cluster.mtbf / gpus
    between = math.sqrt(2 * stop * failures)
    # What a failure costs: half an interval, what had not reached the disk, and the start.
    lost = stop / between + (between / 2 + write + cluster.restart) / failures
    machine = min(cluster.machine, gpus)
    return Plan(
        mode=mode,
        bytes=need,
        fits=need.peak <= cluster.memory,
        weights=every,
        speed=speed,
        bandwidth=(gathers + sums) / seconds,
        host=4 * every * machine + saved * min(machine, shards),
        stop=stop,
        write=write,
        failures=failures,
        every=between,
        lost=min(lost, 0.99),
    )
