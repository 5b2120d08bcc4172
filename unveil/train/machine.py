"""What a model and a batch need from the machine: device, precision, memory and compilation."""

from __future__ import annotations

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
