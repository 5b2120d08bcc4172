"""What one forward pass said of the positions that were read: tokens and their statistics, each computed once.

Shapes: B rows, W window positions, N positions read, V vocabulary. Logits arrive for the N positions alone; statistics
are taken in float32 over a few rows at a time, so that no second tensor of the size of the logits is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from .canvas import Canvas
from .noise import uniform

CHUNK = 1 << 22  # logits looked at together: 16 MB in float32
SAMPLE = 1  # keys the noise that picks tokens; other purposes use other numbers
RESAMPLE = 4  # keys the noise that picks them anew


def pieces(logits: Tensor) -> Iterator[slice]:
    """Rows of (N, V) logits, as many at a time as are looked at together."""
    rows = max(1, CHUNK // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


class Prediction:
    def __init__(self, logits: Tensor, read: Tensor, canvas: Canvas):
        """`logits` (N, V) are taken over: the mask token is made impossible in place. `read` (N,) indexes (B, W)."""
        if canvas.mask_id < logits.shape[1]:  # the blanks of an autoregressive parent are no tokens (`Following`)
            logits[:, canvas.mask_id] = -torch.inf
        self.logits, self.read, self.canvas = logits, read, canvas

    @cached_property
    def seen(self) -> Tensor:
        """(B, W) True where a position was read."""
        return self.spread(torch.ones_like(self.read, dtype=torch.bool), False)

    def spread(self, values: Tensor, elsewhere: float | bool | Tensor) -> Tensor:
        """(N,) values to (B, W); `elsewhere` is what positions that were not read get."""
        shape = (len(self.canvas.tokens), self.canvas.window.width)
        if isinstance(elsewhere, Tensor):
            out = elsewhere.clone()
        else:
            out = torch.full(shape, elsewhere, dtype=values.dtype, device=values.device)
        out.view(-1)[self.read] = values
        return out

    def chunks(self):
        """Float32 logits (n, V), some rows at a time, with where they begin."""
        for here in pieces(self.logits):
            yield here.start, self.logits[here].float()

    @cached_property
    def _summary(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N,) best token, log of the normaliser, best logit, second best logit."""
        parts = []
        for _, logits in self.chunks():
            best = logits.topk(2, dim=-1)
            parts.append((best.indices[:, 0], logits.logsumexp(-1), best.values[:, 0], best.values[:, 1]))
        if not parts:
            empty = torch.zeros(0, device=self.logits.device)
            return empty.long(), empty, empty, empty
        if len(parts) == 1:
            return parts[0]
        token, normaliser, first, second = (torch.cat(column) for column in zip(*parts, strict=True))
        return token, normaliser, first, second

    @cached_property
    def best(self) -> Tensor:
        """(B, W) the likeliest token where read, the token seen elsewhere."""
        return self.spread(self._summary[0], self.canvas.seen)

    @cached_property
    def confidence(self) -> Tensor:
        """(B, W) float32 probability of the likeliest token; -inf where not read."""
        _, normaliser, first, _ = self._summary
        return self.spread((first - normaliser).exp(), -torch.inf)

    @cached_property
    def margin(self) -> Tensor:
        """(B, W) probability of the best token less that of the second; -inf where not read."""
        _, normaliser, first, second = self._summary
        return self.spread((first - normaliser).exp() - (second - normaliser).exp(), -torch.inf)

    @cached_property
    def gap(self) -> Tensor:
        """(B, W) best logit less the second, before any softmax; -inf where not read."""
        _, _, first, second = self._summary
        return self.spread(first - second, -torch.inf)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """(N,) row and (N,) position in the row of what was read."""
        canvas = self.canvas
        row = self.read // canvas.window.width
        return row, canvas.window.positions(self.read.device).expand(len(canvas.tokens), -1).reshape(-1)[self.read]

    def probability(self, tokens: Tensor) -> Tensor:
        """(B, W) the probability of (B, W) `tokens`; -inf where not read."""
        wanted = tokens.reshape(-1)[self.read]
        level = self.logits.gather(-1, wanted[:, None])[:, 0].float()
        return self.spread((level - self._summary[1]).exp(), -torch.inf)

    def logp(self, rows: slice = slice(None)) -> Tensor:
        """(n, V) float32 log-probabilities of the positions read; -inf for the mask token."""
        return self.logits[rows].float() - self._summary[1][rows, None]

    def likeliest(self, which: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(M, count) tokens and float32 log-probabilities at some (M,) of the N positions read, best first."""
        best = self.logits[which].float().topk(count, dim=-1)
        return best.indices, best.values - self._summary[1][which, None]

    def logp_of(self, which: Tensor, tokens: Tensor) -> Tensor:
        """(M,) float32 log-probabilities of (M,) `tokens` at some (M,) of the N positions read."""
        return self.logits[which, tokens].float() - self._summary[1][which]

    @cached_property
    def entropy(self) -> Tensor:
        """(B, W) nats; +inf where not read."""
        _, normaliser, _, _ = self._summary
        values = torch.empty_like(normaliser)
        for start, logits in self.chunks():
            logp = logits - normaliser[start : start + len(logits), None]
            values[start : start + len(logits)] = -(logp.exp() * logp.clamp_min(-1e4)).sum(-1)
        return self.spread(values, torch.inf)

    def choose(self, temperature: float = 0.0, top_p: float = 1.0, purpose: int = SAMPLE) -> tuple[Tensor, Tensor]:
        """(B, W) tokens and their probabilities under the plain distribution (LLaDA's confidence).

        At temperature 0 the likeliest token. Otherwise a draw from the tempered distribution cut to its nucleus, by
        inverting a float64 cumulative sum with one float64 uniform a position: float32 would cut off the tail.
        The uniform depends on the row's seed, the block, the step in it, the position and the purpose, and on nothing
        else: a row that waits in a batch for slower ones still draws what it would draw alone.
        """
        if temperature == 0:
            return self.best, self.confidence
        normaliser = self._summary[1]
        token = torch.empty_like(self.read)
        level = torch.empty_like(normaliser)
        u = self.noise(purpose)
        for start, logits in self.chunks():
            here = slice(start, start + len(logits))
            p = (logits.double() / temperature).softmax(-1)
            if top_p < 1:
                p = nucleus(p, top_p)
            total = p.cumsum(-1)
            drawn = torch.searchsorted(total, u[here, None] * total[:, -1:], right=True)
            token[here] = drawn[:, 0].clamp_max(logits.shape[1] - 1)
            level[here] = (logits.gather(-1, token[here, None])[:, 0] - normaliser[here]).exp()
        return self.spread(token, self.canvas.seen), self.spread(level, -torch.inf)

    def noise(self, purpose: int) -> Tensor:
        """(N,) float64 uniforms in (0, 1) for the positions read, each row from its own seed."""
        canvas, (row, place) = self.canvas, self.places
        return uniform(canvas.seeds[row], canvas.earlier[row] + canvas.number, canvas.step, purpose, place)


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """Probabilities (n, V) with everything outside the smallest set that holds `top_p` set to zero."""
    ranked, order = p.sort(-1, descending=True)
    kept = ranked.cumsum(-1) - ranked < top_p
    return torch.zeros_like(p).scatter(-1, order, ranked * kept)
