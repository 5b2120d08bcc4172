"""Give a network that has none a mask token."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from .shift import Shifted
from .transformer import Transformer


def bare(model: Denoiser) -> Transformer:
    """The network inside whatever wraps it."""
    inner = model.model if isinstance(model, Shifted) else model
    if not isinstance(inner, Transformer):
        raise ValueError(f"expected a Transformer, bare or shifted, not {type(inner).__name__}")
    return inner


def fresh_row(rows: Tensor, generator: torch.Generator) -> Tensor:
    """(V, E) to (E,): the mean row plus a little noise, so that it is like the others and equal to none."""
    wide = rows.float()
    noise = torch.randn(wide.shape[1], generator=generator).to(wide.device)
    return (wide.mean(0) + 0.02 * wide.square().mean().sqrt() * noise).to(rows.dtype)


@torch.no_grad()
def add_mask(model: Denoiser, *, used: int | None = None, seed: int = 0) -> int:
    """A row for the mask token: the first spare one where the vocabulary is padded beyond `used` rows, else a new one.

    Returns the mask id; a model that has one keeps it.
    """
    if model.mask_id >= 0:
        return model.mask_id
    net = bare(model)
    used = net.s.vocab if used is None else used
    if not 0 < used <= net.s.vocab:
        raise ValueError(f"{used} tokens are in use, but the embedding has {net.s.vocab} rows")
    generator = torch.Generator().manual_seed(seed)
    for module in (net.embed,) if net.s.tied else (net.embed, net.head):
        weight = module.weight
        row = fresh_row(weight[:used], generator)[None]
        module.weight = nn.Parameter(torch.cat([weight[:used], row, weight[used + 1 :]]), weight.requires_grad)
    vocab = max(net.s.vocab, used + 1)
    net.s = replace(net.s, vocab=vocab, mask_id=used)
    net.embed.num_embeddings = net.head.out_features = vocab
    net.tie()
    model.mask_id = net.mask_id = used
    return used
