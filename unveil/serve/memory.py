"""How many bytes requests take, and how many there are to give."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..caches import Cache
from ..caches.features import Features
from ..caches.recompute import Recompute
from ..decoders import Decoder
from ..denoiser import Denoiser
from ..guides import Guide
from ..nn.grow import bare

SHARE = 0.5  # of what the machine has free that requests may take; the rest is for what passes make and let go
SPREAD = 1.25  # how much longer than the shortest row of a cohort its longest may be,
SLACK = 32  # and so many positions


@dataclass(frozen=True)
class Network:
    """What of a network decides how much is kept."""

    vocab: int
    item: int  # bytes of a number
    layers: int
    width: int  # numbers of a hidden state
    keys: int  # numbers of the keys and values of one position in one layer

    @classmethod
    def of(cls, model: Denoiser) -> Network:
        shape = bare(model).s
        item = next(model.parameters()).element_size()
        return cls(shape.vocab, item, shape.layers, shape.width, 2 * shape.kv_heads * shape.head_size)

    @property
    def position(self) -> int:
        """Bytes of the keys and values of one position in all layers."""
        return self.layers * self.keys * self.item


def room(length: int) -> int:
    """Positions that a row of `length` may come to take among rows of other lengths."""
    return int(length * SPREAD) + SLACK


def demand(
    network: Network,
    decoder: Decoder,
    cache: Cache,
    guides: Sequence[Guide],
    length: int,
    extent: int,
    blanks: int,
    block: int | None,
) -> int:
    """Bytes that a row of `length` positions takes at most, `extent` of them from its first blank on.

    Keys and values, logits of one pass and what the decoder makes of them, and what it remembers of distributions.
    What layers make and let go within a pass, and statistics, which are taken a few positions at a time, are not
    counted.
    """
    looks = 1 + sum(each.looks for each in guides)
    kept = 0 if isinstance(cache, Recompute) else network.keys
    kept += network.width if isinstance(cache, Features) else 0
    here = blanks if block is None or decoder.ahead or decoder.reaches else min(block, blanks)
    read = here * (2 if decoder.afresh else 1)  # a second prediction verifies what is written
    widest = extent if block is None else max(extent, min(block, length))  # a block may begin before the first blank
    vectors = read * (looks + decoder.copies) + decoder.vectors * widest + decoder.asides
    return room(length) * network.layers * kept * network.item * looks + vectors * network.vocab * 4


def spare(device: torch.device) -> int:
    """Bytes that requests may take on this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * SHARE)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = dict(line.split(":", 1) for line in lines)
        free = int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return int(free * SHARE)
