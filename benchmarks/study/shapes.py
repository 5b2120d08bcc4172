"""The network shapes that are timed."""

from __future__ import annotations

from dataclasses import replace

import torch

from unveil.attention import Attention
from unveil.nn.transformer import Shape, Transformer

SHAPES = {
    "tiny": Shape(vocab=64, width=32, layers=2, heads=4, kv_heads=2, hidden=64, head_size=8, tied=True),
    "15M": Shape(vocab=8192, width=384, layers=8, heads=6, kv_heads=2, hidden=1024, head_size=64, tied=True),
    "60M": Shape(vocab=32000, width=768, layers=6, heads=12, kv_heads=4, hidden=2048, head_size=64, tied=True),
    "qwen2.5-0.5B": Shape(
        vocab=151936,
        width=896,
        layers=24,
        heads=14,
        kv_heads=2,
        hidden=4864,
        head_size=64,
        biases=frozenset({"qkv"}),
        theta=1e6,
        tied=True,
    ),
    "llada-vocabulary": Shape(
        vocab=126464, width=512, layers=4, heads=8, kv_heads=8, hidden=1536, head_size=64, theta=5e5
    ),
}


def network(shape: Shape, attention: Attention, seed: int = 0) -> Transformer:
    """Random weights; the last row of the vocabulary is the mask."""
    torch.manual_seed(seed)
    model = Transformer(replace(shape, mask_id=shape.vocab - 1))
    model.attention, model.bos_id = attention, 0
    return model.eval()


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def work(shape: Shape, positions: int, length: int, read: int) -> float:
    """Operations of the matrix products of one forward: all blocks at `positions`, the head at `read` of them.

    `length` is what a position looks at. A multiplication and an addition count as two.
    """
    size = shape.heads * shape.head_size
    projections = 2 * shape.width * size + 2 * shape.width * shape.kv_heads * shape.head_size
    block = projections + 3 * shape.width * shape.hidden + 2 * size * length
    return 2.0 * (positions * shape.layers * block + read * shape.width * shape.vocab)
