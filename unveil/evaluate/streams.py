"""Read the clean copy of a text once, and any number of noisy copies against it.

In the layouts of `objectives.block` and `objectives.leader` clean positions look at clean positions alone, so what
they say and what is kept of them is the same for every draw of the noise. Shapes: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import rules
from ..context import Attend, Context, Store, Window, dense
from ..denoiser import Denoiser
from ..nn import reading
from ..nn.shift import Shifted
from ..nn.transformer import Transformer
from ..objectives import Batch, block, leader
from ..processes import Draw


class Streams:
    """Blocks of `size` positions; with `leads` a block's first token, its leader, is read from the clean copy.

    `first` is where a block begins before which no row has targets: of the noisy copies nothing before it is read.
    With `every` the clean copy is asked about all targets, and not about leaders alone.
    """

    def __init__(self, model: Denoiser, batch: Batch, size: int, *, leads: bool, first: int = 0, every: bool = False):
        assert first % size == 0, "noisy blocks are read whole"
        self.model, self.batch = model, batch
        self.back = reading.lag(model) if leads else 0  # block diffusion reads a token where it stands
        shape = batch.tokens.shape
        length, device = shape[1], batch.tokens.device
        rule = rules.teacher_forcing(length, size, token_causal=leads and leader.token_causal(model))
        # The noisy copy stands before the clean one, as in training, so rule and positions are those of training.
        here = torch.arange(length, device=device)
        self.noisy = Context(
            Window(first, length - first),
            reading.apart(batch.documents, rule, copies=2),
            positions=here[first:],
            store=Store(2 * length),
            exact=True,
        )
        leading = batch.targets & leader.leading(batch, size - 1) & leads
        flat = (batch.targets & leads if every else leading).flatten().nonzero()[:, 0]
        clean = replace(self.noisy, window=Window(length, length), positions=here, attend=behind(length))
        self.clean = placed(self.surprise(batch.tokens, clean, flat, self.back), flat, shape)  # (B, L) nats
        self.leaders = self.clean.where(leading, 0.0).sum(1)  # (B,) nats

    def surprise(self, noisy: Tensor, ctx: Context, flat: Tensor, back: int) -> Tensor:
        """(N,) nats of the tokens at flat indices into (B, L), each read `back` positions before itself."""
        tokens = torch.cat([noisy, self.batch.tokens], dim=1)
        length = self.batch.tokens.shape[1]
        skipped = length - ctx.over(2 * length).width  # of each row
        read = flat - back - (flat // length + 1) * skipped
        found = reading.logits(self.model, tokens, ctx, read)
        return reading.surprise(found, self.batch.tokens.flatten()[flat])

    def hidden(self, hit: Tensor) -> Tensor:
        """(B, L) nats of what `hit` hides, 0 elsewhere."""
        flat = hit.flatten().nonzero()[:, 0]
        noisy = self.batch.tokens.masked_fill(hit, self.model.mask_id)
        return placed(self.surprise(noisy, self.noisy, flat, self.back), flat, hit.shape)

    def nats(self, drawn: Draw) -> Tensor:
        """(B,) the bound of one draw: `leader.nats` or `block.nats`."""
        return self.leaders + (self.hidden(drawn.hit) * drawn.weight).sum(1)


class Together:
    """The same, both copies in every pass: for networks whose copies cannot be read apart."""

    def __init__(self, model: Denoiser, batch: Batch, size: int, *, leads: bool):
        self.model, self.batch, self.size, self.leads = model, batch, size, leads
        self.clean = self.read(torch.zeros_like(batch.targets), batch.targets & leads, 1)

    def read(self, hit: Tensor, asked: Tensor, stream: int) -> Tensor:
        """(B, L) nats of what is `asked` of one of the copies, 0 elsewhere."""
        flat, length = asked.flatten().nonzero()[:, 0], asked.shape[1]
        drawn = Draw(hit, hit.float())
        causal = self.leads and leader.token_causal(self.model)
        tokens, ctx = block.two_streams(self.batch, drawn, self.model.mask_id, self.size, token_causal=causal)
        back = reading.lag(self.model) if self.leads else 0
        found = reading.logits(self.model, tokens, ctx, block.in_streams(flat, length, stream) - back)
        return placed(reading.surprise(found, self.batch.tokens.flatten()[flat]), flat, asked.shape)

    def hidden(self, hit: Tensor) -> Tensor:
        """(B, L) nats of what `hit` hides, 0 elsewhere."""
        return self.read(hit, hit, 0)


def placed(values: Tensor, flat: Tensor, shape: torch.Size) -> Tensor:
    """(B, L) of `shape`: `values` (N,) at the flat indices they belong to, 0 elsewhere."""
    return values.new_zeros(shape).view(-1).index_copy(0, flat, values).view(shape)


def behind(length: int) -> Attend:
    """Clean queries look at clean keys, which lie behind `length` noisy ones."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, layer: int) -> Tensor:
        assert mask is not None, "the two copies never see all of each other"
        return dense(q, k[:, :, length:], v[:, :, length:], mask[:, :, :, length:], False, layer)

    return attend


def separable(model: Denoiser, length: int) -> bool:
    """Can the copies be read one after the other? A sliding window narrower than both would be counted over both."""
    net = model.model if isinstance(model, Shifted) else model
    return isinstance(net, Transformer) and (net.s.sliding is None or 2 * length <= net.s.sliding)
