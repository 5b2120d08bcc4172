"""Several processes that share one training run: FSDP2 over a mesh, on gloo or NCCL, under torchrun.

Every mode is one mesh of `replicas x shards` processes: `ddp` is N x 1, `fsdp` 1 x N, `hsdp` machines x processes of a
machine. The weights are cut into `shards` parts along their first dimension (`torch.distributed.fsdp.fully_shard`, each
block and then the rest), gradients are summed over all processes in float32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous

from ..denoiser import Denoiser
from ..nn.grow import bare
from ..objectives import Batch
from .machine import memory, state_bytes
from .ranks import Ranks
from .recipe import Recipe

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # how long the others wait for a process that prepares data or writes the model
ROOM = 0.6  # share of a device's memory that the state of training may take when every process holds all of it


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """The processes that torchrun (or `--nproc`) started, this one among them; one process without a launcher.

    ValueError when a GPU or NCCL is asked for and is not there, or something else than torchrun has set WORLD_SIZE.
    """
    world = from_torchrun("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if world == 1:
        yield Ranks(torch.device(device))
        return
    place, beside, _ = (from_torchrun(name) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK"))
    where = chosen(torch.device(device), place)
    backend = "gloo" if where.type == "cpu" else "cpu:gloo,cuda:nccl"
    store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
    if beside == world:  # torchrun gives new processes the store of the dead, whose addresses lie there still
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Several(where, place, beside)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        said = str(error).split("\n")[0]
        raise ConnectionError(f"another process of this run has ended, and this one with it ({said})") from error
    finally:
        dist.destroy_process_group()


def from_torchrun(name: str) -> int:
    """A number that torchrun gives each of its processes."""
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise ValueError(
            f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')!r} and {name} {value or 'not set'}: start several by "
            "torchrun or --nproc, which set both, or unset WORLD_SIZE for one process"
        )
    return int(value)


def chosen(device: torch.device, place: int) -> torch.device:
    """The device of the process number `place` of its machine."""
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"several processes train on cpu or cuda, not on {device}")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device, or this build of torch has no CUDA")
    if not dist.is_nccl_available():
        raise ValueError("several GPUs talk through NCCL, and this build of torch has none: use --device cpu")
    if place >= torch.cuda.device_count():
        raise ValueError(
            f"process {place + 1} of this machine needs a GPU of its own, and it has {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def shared(model: nn.Module) -> list[FSDPModule]:
    """The parts whose weights are gathered together: the blocks, and what is around them."""
    return [part for part in model.modules() if isinstance(part, FSDPModule)]


class Several(Ranks):
    """One of the processes."""

    def __init__(self, device: torch.device, place: int, beside: int):
        """`place` is its number on its machine, `beside` how many that machine has."""
        super().__init__(device)
        self.place, self.beside = place, beside
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.divides = self.world

    def check(self, recipe: Recipe) -> None:
        if recipe.rows % self.world:
            raise ValueError(
                f"{recipe.rows} rows a step cannot be shared equally by {self.world} processes: "
                "make rows a multiple of their number"
            )
        if len(set(self.words(str(self.beside)))) > 1:
            raise ValueError("every machine needs as many processes as the others")
        if recipe.parallel == "hsdp" and self.beside == self.world:
            raise ValueError(
                "parallel = 'hsdp' shards inside machines and replicates over them, but there is one machine: "
                "use fsdp, ddp or auto"
            )

    def spread(self, model: Denoiser, recipe: Recipe, low: bool) -> None:
        assert self.device is not None
        mode = recipe.parallel
        if mode == "auto":
            weights = list(model.parameters())
            learnt = sum(p.numel() for p in weights if p.requires_grad)
            frozen = sum(p.numel() for p in weights) - learnt
            room = memory(self.device) / (self.beside if self.device.type == "cpu" else 1)
            fits = self.led(lambda: str(state_bytes(learnt, frozen, ema=recipe.ema > 0) < ROOM * room)) == "True"
            mode = "ddp" if fits else "fsdp" if self.beside == self.world else "hsdp"
        shards = {"ddp": 1, "fsdp": self.world, "hsdp": self.beside}[mode]
        self.writers, self.sharded = shards, shards > 1
        mesh = init_device_mesh(self.device.type, (self.world // shards, shards), mesh_dim_names=("replica", "shard"))
        policy = MixedPrecisionPolicy()
        if low and self.sharded:  # where all weights are everywhere, autocast does it as in one process
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        net = bare(model)
        for block in net.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(net, mesh=mesh, mp_policy=policy)
        for part in shared(model):  # what a first pass without gradients would allocate is of no use to training
            part.unshard()
        self.forget(model)
        model.to(self.device)

    def share(self, batch: Batch) -> Batch:
        rows = len(batch.tokens) // self.world
        mine = slice(self.rank * rows, (self.rank + 1) * rows)
        tensors = {name: value[mine] for name, value in vars(batch).items() if isinstance(value, Tensor)}
        return replace(batch, **tensors)

    def micro(self, accumulate: int) -> int:
        return -(-accumulate // self.world)

    def sums(self, model: Denoiser, last: bool) -> None:
        for part in shared(model):
            part.set_requires_all_reduce(last, recurse=False)

    def gather(self, values: Tensor) -> Tensor:
        found = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(found, values.contiguous())
        return torch.stack(found)

    def same(self, value: float) -> float:
        told = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(told, 0)
        return told.item()

    def words(self, text: str) -> list[str]:
        raw = text.encode()
        sizes = self.gather(torch.tensor(len(raw)))
        padded = torch.zeros(max(int(sizes.max()), 1), dtype=torch.uint8)
        padded[: len(raw)] = torch.tensor(list(raw), dtype=torch.uint8)
        return [bytes(row[:size].tolist()).decode() for row, size in zip(self.gather(padded), sizes, strict=True)]

    def led(self, work: Callable[[], str]) -> str:
        made, trouble = "", None
        if self.leads:
            try:
                made = work()
            except (ValueError, OSError) as error:
                trouble = error
        made, refused = json.loads(self.words(json.dumps([made, str(trouble or "")]))[0])
        if trouble is not None:
            raise trouble
        if refused:
            raise ValueError(refused)
        return made

    def in_turn(self, work: Callable[[], T]) -> T:
        made: list[T] = []
        for first in (True, False):
            trouble = None
            if (self.place == 0) is first:
                try:
                    made.append(work())
                except (ValueError, OSError) as error:
                    trouble = error
            refused = [each for each in self.words(str(trouble or "")) if each]
            if trouble is not None:
                raise trouble
            if refused:
                raise ValueError(refused[0])
        return made[0]

    def wait(self) -> None:
        self.words("")

    def forget(self, model: Denoiser) -> None:
        for part in shared(model):
            part.reshard()

    @contextmanager
    def gathered(self, model: Denoiser) -> Iterator[None]:
        places = [(part, name) for part in model.modules() for name, _ in part.named_parameters(recurse=False)]
        shares = [getattr(part, name) for part, name in places]
        full: dict[nn.Parameter, nn.Parameter] = {}  # what two modules share they go on to share
        for share in shares:
            if share not in full:
                found = share.detach().full_tensor()
                full[share] = nn.Parameter(found.cpu(), False) if self.leads else share
        try:
            for (part, name), share in zip(places, shares, strict=True):
                setattr(part, name, full[share])
            yield
        finally:
            for (part, name), share in zip(places, shares, strict=True):
                setattr(part, name, share)
