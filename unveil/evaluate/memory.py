"""The most memory that tensors made within a stretch of code took at one time."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, until nothing refers to it.

    What was there before, such as weights, is not counted, nor are the work spaces inside an operation. Unlike the
    resident size of the process this depends neither on the allocator nor on what ran before. It slows code down.
    """

    def __init__(self):
        super().__init__()
        self.bytes = 0  # most at one time
        self.now = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in before and storage._cdata not in self.sizes:
                    self.hold(storage)
        return out

    def hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.sizes[key] = size
        self.now += size
        self.bytes = max(self.bytes, self.now)
        weakref.finalize(storage, self.free, key)

    def free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)
