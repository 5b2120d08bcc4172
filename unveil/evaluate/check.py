"""Do the weights of a checkpoint read a token where its config says they do?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codecs.text import Text
from ..context import Context
from ..denoiser import Denoiser
from ..nn import reading
from ..nn.grow import bare
from ..nn.transformer import Transformer
from ..noise import uniform
from ..objectives import Batch, leader
from .streams import Streams

TEXTS = (
    "The old man walked down to the river every morning, and when the weather was good he sat there until noon.",
    "It was the first time that she had seen the sea, and she did not know what to say about it.",
    "In the beginning the city was only a few houses around a market, where people came to buy bread and salt.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / 2\n",
    "import os\n\nfor name in os.listdir(path):\n    if name.endswith('.py'):\n        print(os.path.join(path, name))",
)
HIDDEN, DRAWS = 0.15, 8  # share of the tokens, and times that it is drawn anew
CLEAR = 4.0  # standard errors
CHANCE = 0.9  # of log V: a network that is not below has learnt nothing of such text


@dataclass(frozen=True)
class Check:
    """Cross-entropy at hidden tokens, in nats, of the same network read in both ways."""

    shifted: bool  # what the config says
    here: float  # token i read at i
    before: float  # token i read at i - 1
    stderr: float  # of their difference
    chance: float  # log V

    @property
    def seen(self) -> bool | None:
        """Are the weights those of a shifted model? None: they do not show."""
        clear = abs(self.here - self.before) > CLEAR * self.stderr
        return self.before < self.here if clear and min(self.here, self.before) < CHANCE * self.chance else None

    @property
    def agrees(self) -> bool | None:
        return None if self.seen is None else self.seen == self.shifted

    @property
    def sentence(self) -> str:
        figures = f"{self.before:.2f} nats at hidden tokens read at i - 1, {self.here:.2f} read at i"
        if self.seen is None:
            return f"{figures}: the weights do not show which is right on such text"
        right = "i - 1" if self.seen else "i"
        if self.agrees:
            return f"{figures}: the weights read token i at {right}, as config.json says"
        return (
            f"{figures}: the weights read token i at {right}, and config.json says otherwise; "
            f'its "unveil" object should have "shift": {str(self.seen).lower()}'
        )


@torch.inference_mode()
def check(model: Denoiser, text: Text) -> Check:
    """Hide a share of some English and some Python and see where the network speaks of it.

    ValueError for an autoregressive parent, which has no mask token and always reads at i - 1.
    """
    if model.mask_id < 0 or model.attention.kind == "causal":
        raise ValueError("an autoregressive model always reads token i at i - 1: there is no shift to check")
    net = bare(model)
    front = [] if text.start_id is None else [text.start_id]
    found = [surprises(net, front + text.encode(each), number) for number, each in enumerate(TEXTS)]
    here, before = (torch.cat(side).double() for side in zip(*found, strict=True))
    stderr = float((here - before).std() / math.sqrt(len(here)))
    return Check(model.shifted, float(here.mean()), float(before.mean()), stderr, math.log(net.s.vocab))


def surprises(net: Transformer, ids: list[int], number: int) -> tuple[Tensor, Tensor]:
    """(N,) nats of the hidden tokens of all draws, read where they stand and one position before."""
    device = net.embed.weight.device
    tokens = torch.tensor(ids, device=device).repeat(DRAWS, 1)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    look, size = net.attention, net.attention.block or 0
    row, at = torch.arange(DRAWS, device=device)[:, None], torch.arange(len(ids), device=device)
    hit = (uniform(number, row, at) < HIDDEN) & batch.targets
    streams = None
    if size:
        streams = Streams(net, batch, size, leads=look.kind == "leader")
        hit &= ~leader.leading(batch, size - 1)  # one position before these another block ends
    flat = hit.flatten().nonzero()[:, 0]
    noisy = tokens.masked_fill(hit, net.mask_id)

    def nats(back: int) -> Tensor:
        if streams is not None:
            return streams.surprise(noisy, streams.noisy, flat, back)
        return reading.surprise(reading.logits(net, noisy, Context(), flat - back), tokens.flatten()[flat])

    return nats(0), nats(1)
