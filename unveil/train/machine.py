"""What a model and a batch need from the machine: device, precision, memory and compilation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..objectives import Batch

SWITCH = "checkpointing"  # the attribute of a network that makes it recompute activations


def bfloat16(dtype: str, device: torch.device) -> bool:
    """Are matrix products taken in bfloat16? "auto": where the machine has instructions for them."""
    if dtype != "auto":
        return dtype == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Only kernels that give the same bits every time inside; RuntimeError for an operation that has none."""
    before = torch.are_deterministic_algorithms_enabled()
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which CUDA refuses
    torch.use_deterministic_algorithms(on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def memory(device: torch.device) -> int:
    """Bytes that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def state_bytes(learnt: int, frozen: int, *, ema: bool) -> int:
    """What training keeps, in float32: of each weight itself, its gradient, AdamW's two moments, and its average."""
    return learnt * (4 + 4 + 8 + 4 * ema) + 4 * frozen


# A weight that several processes share is a DTensor. It is told by its methods: importing it takes seconds.


def local(tensor: Tensor) -> Tensor:
    """This process's rows of a tensor, as a view; of one that is not shared, all."""
    tensor = tensor.detach()
    cut = getattr(tensor, "to_local", None)
    return tensor if cut is None else cut()


def first_row(tensor: Tensor) -> int:
    """Where in the whole tensor this process's rows begin."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return 0
    rows = -(-tensor.shape[0] // mesh.size(mesh.ndim - 1))
    return min(rows * mesh.get_local_rank(mesh.ndim - 1), tensor.shape[0])


def recompute(model: nn.Module, on: bool) -> None:
    """Set the network's own switch; ValueError when it has none."""
    switches = [module for module in model.modules() if hasattr(module, SWITCH)]
    if on and not switches:
        raise ValueError(f"{type(model).__name__} cannot recompute activations: set checkpointing = false")
    for module in switches:
        setattr(module, SWITCH, on)


def compiled(model: nn.Module) -> None:
    """Compile each block of the network: whatever method an objective calls, the blocks do the work."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    inner = {id(m) for outer in lists for block in outer for m in block.modules()}
    blocks = [block for each in lists if id(each) not in inner for block in each]
    for module in blocks or [model]:
        module.compile()


def moved(batch: Batch, device: torch.device) -> Batch:
    """Every tensor of the batch on the device."""
    if device.type == "cpu":
        return batch
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def split(batch: Batch, parts: int) -> list[Batch]:
    """At most `parts` runs of rows, of nearly equal size."""
    if parts == 1:
        return [batch]
    tensors = {name: value.tensor_split(parts) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return [replace(batch, **{name: pieces[i] for name, pieces in tensors.items()}) for i in range(parts)]
