"""Tiny random models for tests."""

from __future__ import annotations

import torch

from unveil.attention import Attention
from unveil.nn.shift import Shifted
from unveil.nn.transformer import Shape, Transformer

MASK = 15
MIXED = {"layers": 3, "sliding": 5, "far": frozenset({1}), "theta_near": 100.0, "order": "both"}  # as Gemma 3 is
CLASSIC = {"norm": "layer", "activation": "gelu_tanh", "gated": False, "learned": True}  # as GPT-2 is
TINY = Shape(vocab=16, width=32, layers=2, heads=4, kv_heads=2, hidden=64, head_size=8, mask_id=MASK, qk_norm="head")


def tiny(kind: str = "full", block: int | None = None, *, shifted: bool = False, seed: int = 0, sharp: float = 20.0):
    """A model whose random weights are large enough for tokens to matter to each other."""
    torch.manual_seed(seed)
    model = Transformer(TINY).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(sharp / 2)
    model.attention = Attention(kind, block)
    wrapped = Shifted(model) if shifted else model
    wrapped.attention, wrapped.bos_id = model.attention, 0
    return wrapped.eval()


def prompts(rows: int = 3, length: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


def gapped() -> list[torch.Tensor]:
    """Three rows of unequal length, blank in a stretch in the middle and at the end."""
    rows = [prompts(1, n, seed=n)[0] for n in (9, 12, 15)]
    for n, row in enumerate(rows):
        row[3 + n : 5 + 3 * n] = MASK
        row[-1] = MASK
    return rows
