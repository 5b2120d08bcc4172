"""Random numbers that depend on nothing but their key: the same in any batch, order, split or world size."""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of the SplitMix64 finaliser (Steele, Lea and Flood, 2014), as signed 64-bit integers.
GOLDEN = -0x61C8864680B583EB
FIRST = -0x40A7B892E31B1A47
SECOND = -0x6B2FB644ECCEEE15


def mix(key: Tensor) -> Tensor:
    """int64 to int64: every input bit changes every output bit with probability one half."""
    key = (key ^ ((key >> 30) & 0x3FFFFFFFF)) * FIRST
    key = (key ^ ((key >> 27) & 0x1FFFFFFFFF)) * SECOND
    return key ^ ((key >> 31) & 0x1FFFFFFFF)


def key(*parts: Tensor | int) -> Tensor:
    """Integers and int64 tensors that broadcast together to one int64 key."""
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        part = torch.as_tensor(part, dtype=torch.int64)
        state = mix(state.to(part.device) * 31 + part + GOLDEN)
    return state


def uniform(*parts: Tensor | int) -> Tensor:
    """float64 in (0, 1), one for each element of the broadcast key."""
    return ((key(*parts) >> 11) & ((1 << 53) - 1)).double().add(0.5) * 2.0**-53
