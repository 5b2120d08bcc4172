"""Several processes that share the problems of one measurement: which one this is, and what the others have found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed


def met() -> tuple[int, int]:
    """The number of this process and how many there are: under torchrun several, that can now be heard; else one."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return rank, world


def parted() -> None:
    """The end of what `met` began."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def own(device: str) -> str:
    """Of several cards of this machine the one that is this process's; any other device as it is named."""
    several = device.startswith("cuda") and os.environ.get("WORLD_SIZE", "1") != "1"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if several else device


def joint(tensor: Tensor, world: int) -> Tensor:
    """The elements that each of `world` processes has, one process after the other, for all of them."""
    if world == 1:
        return tensor
    found = [torch.empty_like(tensor.cpu().view(-1)) for _ in range(world)]
    distributed.all_gather(found, tensor.cpu().view(-1))
    return torch.cat(found)


def collected(found: Any, rank: int, world: int, to: int = 0) -> list[Any] | None:
    """What each process has, for the one of number `to`; None for the others."""
    if world == 1:
        return [found]
    all_: list[Any] | None = [None] * world if rank == to else None
    distributed.gather_object(found, all_, to)
    return all_


def numbers(problems: Sequence[tuple[Hashable, int | None, int | None]]) -> list[int]:
    """What keys the noise of each request, from the task, the problem's number in it, and how often it is asked.

    A function of the problem alone: neither the share of the problems that this process has, nor what a cache has
    answered already, changes it. A problem that is asked n times takes n numbers.
    """
    found, turns = [], Counter[Hashable]()
    for task, problem, repeats in problems:
        found.append((problem or 0) * (repeats or 1) + turns[task, problem])
        turns[task, problem] += 1
    return found
