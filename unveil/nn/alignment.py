"""How far a network's predictions and inner states are from those of a frozen parent.

Shapes: N tokens asked about, V vocabulary, E width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import Transformer


@contextmanager
def listening(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that a forward pass fills with the states after each block; under `Context.read` the last are (N, E)."""
    network = next((part for part in model.modules() if isinstance(part, Transformer)), None)
    if network is None:
        raise ValueError("alignment compares the blocks of two Transformers, and this model has none")
    heard: list[Tensor] = []

    def hear(block: nn.Module, given: tuple, states: Tensor) -> None:
        heard.append(states)

    hooks = [block.register_forward_hook(hear) for block in network.blocks]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def divergence(taught: Tensor, found: Tensor, mask_id: int) -> Tensor:
    """(N,) KL(taught || found) in nats between logits (N, V'), (N, V); V may exceed V' by the mask and by padding."""
    known = min(taught.shape[1], found.shape[1])
    taught = taught[:, :known].float()
    if mask_id < known:
        taught = taught.clone()
        taught[:, mask_id] = -torch.inf
    p = taught.softmax(1)
    log_q = found.float().log_softmax(1)[:, :known]
    return (torch.xlogy(p, p) - p * log_q.masked_fill(p == 0, 0.0)).sum(1)


def apartness(theirs: list[Tensor], mine: list[Tensor]) -> Tensor:
    """(N,) 1 - cosine between states (N, E), averaged over layers."""
    if len(theirs) != len(mine):
        raise ValueError(f"alignment needs a parent with as many blocks as the model: {len(theirs)} and {len(mine)}")
    pairs = zip(theirs, mine, strict=True)
    return torch.stack([1 - F.cosine_similarity(a.float(), b.float(), -1) for a, b in pairs]).mean(0)
