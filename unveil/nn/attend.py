"""Ways to attend beyond `context.dense`: FlexAttention, which skips the blocks of a mask that allow nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ..context import dense


class Flex:
    """An `Attend` for CUDA: `Context(rule=..., attend=Flex())`. One object serves any number of passes.

    Passes without a mask go to the dense kernels, which need none. The block mask is made once per pass and shared by
    its layers. Use `compiled=False` on a CPU, where the compiled kernel has no backward pass; that is for checking
    numbers, not for speed. Not yet measured on a GPU. No dataclass: FSDP takes those that a module is given apart.
    """

    def __init__(self, compiled: bool = True):
        self.kernel = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
        self.mask: Tensor | None = None  # of the latest pass
        self.blocks: BlockMask | None = None  # the same in blocks

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int) -> Tensor:
        if mask is None:
            return dense(q, k, v, mask, causal, layer)
        if mask is not self.mask:
            self.mask, self.blocks = mask, in_blocks(mask, q.shape[2], k.shape[2])
        return self.kernel(q, k, v, block_mask=self.blocks, enable_gqa=q.shape[1] != k.shape[1])


def in_blocks(mask: Tensor, width: int, known: int) -> BlockMask:
    """(B or 1, 1, W or 1, K) bool to a block mask."""
    rows = mask.expand(-1, -1, width, -1)[:, 0]

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return rows[b.clamp(max=len(rows) - 1), q.clamp(max=width - 1), k.clamp(max=known - 1)]  # blocks overhang

    return create_block_mask(allowed, len(rows) if len(rows) > 1 else None, None, width, known, device=str(mask.device))
