"""Draft many tokens in one look, verify them in another: exactly the autoregressive distribution, in fewer passes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..canvas import Canvas
from ..context import Ask, Asking, Context, Rule, Window
from ..prediction import CHUNK, Prediction, nucleus
from ..rules import both, causal, leading, within
from . import Decoder

DRAFT, ACCEPT, REPLACE = 11, 12, 13  # key the noise that drafts, that accepts, and that draws the last token of a round


@dataclass
class Speculative(Decoder):
    """For leader models: speculative sampling (arXiv 2211.17192, algorithm 1) with the model as its own draft.

    The first step of a block reads what is written and draws the leader. Every other step is a round of two passes:

    1. one look at [leader, masks] drafts: token i is a draw from q(i), independent of all other drafts;
    2. one causal look at [leader, drafts] gives the autoregressive p(i) of each, and p of the position behind them.

    From the left, draft x is kept with probability min(1, p(x) / q(x)). The first that is not kept is replaced by a
    draw from max(0, p - q), normalised; if all are kept one more token is drawn from p. That token leads the next
    round. p and q are tempered and cut alike; at temperature 0 a draft is kept if p has no likelier token. Where only
    one draft would fit the first pass is left out: two tokens for two passes are no gain.

    n  drafts in a round; 0: the length of the trained block, less its leader
    """

    vectors = 1

    n: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.n < 0:
            raise ValueError(f"n is {self.n}; expected a number of drafts, or 0 for the trained block less its leader")

    def begin(self, canvas: Canvas) -> None:
        if not canvas.look.leads:
            raise ValueError(
                "speculative verifies its drafts by the autoregressive mode of a leader model, "
                f"and here the model looks with {canvas.look.kind} attention"
            )
        if not self.n and canvas.look.block is None:
            raise ValueError("the model names no trained block to draft: say how many tokens, as in speculative(n=8)")
        if bool(((~canvas.given).sum(1).cpu() != canvas.lengths - canvas.first).any()):
            raise ValueError("speculative writes what follows a text, and here a given token stands behind a blank")
        self.reach = self.n or (canvas.look.block or 1) - 1
        self.offered, self.accepted = torch.zeros_like(canvas.taken), torch.zeros_like(canvas.taken)  # (B,) drafts

    def enter(self, canvas: Canvas) -> None:
        if canvas.budget < canvas.block.width:
            raise ValueError(
                f"steps is {canvas.budget - 1}, and speculative may need as many as a block has positions, "
                f"{canvas.block.width}: leave steps out"
            )

    def reads(self, canvas: Canvas, ahead: bool) -> Tensor:
        """Begins a round: each row's drafts and the position behind them."""
        if canvas.leading:
            return super().reads(canvas, ahead)
        self.stop = (canvas.starts + canvas.block.width).minimum(canvas.lengths)  # (B,) end of what may be written
        rest = canvas.open.sum(1).cpu()
        self.front = self.stop - rest  # (B,) the first blank; the token before it leads
        count = (rest - 1).clamp(max=self.reach)
        self.until = self.front + torch.where(count > 1, count, 0)  # (B,) drafts stand before it
        return self.between(canvas, self.until + 1)

    def between(self, canvas: Canvas, stop: Tensor) -> Tensor:
        """(N,) flat indices into (B, W) of the blanks before `stop` (B,)."""
        here = canvas.window.positions(canvas.tokens.device)
        return (canvas.open & (here < stop.to(here.device)[:, None])).flatten().nonzero()[:, 0]

    def ask(self, canvas: Canvas, context: Context) -> Asking:
        if canvas.leading:
            return (yield Ask(canvas.tokens, context))
        assert context.read is not None
        most, tokens = int((self.until - self.front).max()), canvas.tokens
        if most:
            tokens = yield from self.draft(canvas, context)
        return (yield Ask(tokens, self.over(canvas, context, causal, 2 + most, context.read)))

    def draft(self, canvas: Canvas, context: Context) -> Generator[Ask, Tensor, Tensor]:
        """The draft pass, and the (B, L) tokens with a draw where each draft stands; the canvas stays as it is."""
        read = self.between(canvas, self.until)
        width = 1 + min(self.reach, int((self.stop - self.front).max()))
        rule = both(leading(self.front - 1, self.reach + 1), within(self.stop))
        found = Prediction((yield Ask(canvas.tokens, self.over(canvas, context, rule, width, read))), read, canvas)
        self.found = found  # what (M,) drafts are drawn from
        self.level = torch.ones(len(read), dtype=torch.float64, device=read.device)  # q of each
        if self.temperature == 0:
            self.drafts = found.logits.argmax(-1)
        else:
            self.drafts, u = torch.empty_like(read), found.noise(DRAFT)
            for here in parts(*found.logits.shape):
                q = self.tempered(found.logits[here])
                self.drafts[here] = token = drawn(q, u[here])
                self.level[here] = q.gather(-1, token[:, None])[:, 0]
        return canvas.tokens.index_put(found.places, self.drafts)

    def over(self, canvas: Canvas, context: Context, rule: Rule | None, width: int, read: Tensor) -> Context:
        """A pass over `width` positions a row from its leader on; `read` (N,) is given in the canvas' window."""
        starts = (self.front - 1).clamp(max=canvas.tokens.shape[1] - width)  # what is written can be read again
        window = Window.of(starts, width) if context.store else Window(0, int(starts.max()) + width)
        rows, old = len(canvas.tokens), canvas.window.positions(read.device)[:, 0]
        row, moved = read // canvas.window.width, old - window.positions(read.device)[:, 0]
        place = read % canvas.window.width + moved.expand(rows)[row]
        return replace(context, window=window, rule=rule, read=row * window.width + place)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        if canvas.leading:
            token, _ = seen.choose(self.temperature, self.top_p)
            return torch.where(canvas.open & seen.seen, token, canvas.seen)
        row, place = seen.places
        drafted = (place < self.until.to(row.device)[row]).nonzero()[:, 0]  # (M,) which of the (N,) read are drafts
        kept = torch.zeros_like(row, dtype=torch.bool)
        if len(drafted):
            kept[drafted] = self.agrees(seen, drafted)
        failed = seen.spread(~kept, False).cumsum(1).reshape(-1)[seen.read]  # up to here, in the row
        last, kept = ~kept & (failed == 1), failed == 0
        token = self.chosen(seen, drafted, last) if self.temperature else seen.best.reshape(-1)[seen.read]
        self.accepted.index_add_(0, row, kept.long())
        self.offered.index_add_(0, row[drafted], (kept | last)[drafted].long())
        return seen.spread(torch.where(kept | last, token, canvas.mask_id), canvas.seen)

    def agrees(self, seen: Prediction, drafted: Tensor) -> Tensor:
        """(M,) is the draft kept?"""
        if self.temperature == 0:
            return self.drafts == seen.best.reshape(-1)[seen.read[drafted]]
        level = torch.empty_like(self.level)
        for here in parts(len(drafted), seen.logits.shape[1]):
            p = self.tempered(seen.logits[drafted[here]])
            level[here] = p.gather(-1, self.drafts[here, None])[:, 0]
        return seen.noise(ACCEPT)[drafted] * self.level < level

    def chosen(self, seen: Prediction, drafted: Tensor, last: Tensor) -> Tensor:
        """(N,) the drafts, and the draw that stands where a row's round is at its `last`; the rest means nothing."""
        token, which = torch.zeros_like(seen.read), torch.full_like(seen.read, -1)
        if len(drafted):
            token[drafted] = self.drafts
            which[drafted] = torch.arange(len(drafted), device=which.device)
        u = seen.noise(REPLACE)
        for here in last.nonzero()[:, 0].split(max(1, CHUNK // seen.logits.shape[1])):
            p = self.tempered(seen.logits[here])
            wrong = which[here] >= 0
            if bool(wrong.any()):
                excess = (p[wrong] - self.tempered(self.found.logits[which[here[wrong]]])).clamp(min=0)
                p[wrong] = torch.where(excess.sum(-1, keepdim=True) > 0, excess, p[wrong])
            token[here] = drawn(p, u[here])
        return token

    def tempered(self, logits: Tensor) -> Tensor:
        """(n, V) logits to float64 probabilities at the temperature, cut to the nucleus."""
        p = (logits.float().double() / self.temperature).softmax(-1)
        if self.top_p < 1:
            p = nucleus(p, self.top_p)
            p = p / p.sum(-1, keepdim=True)
        return p


def parts(count: int, vocab: int) -> Iterator[slice]:
    """`count` rows, some at a time."""
    size = max(1, CHUNK // vocab)
    return (slice(start, start + size) for start in range(0, count, size))


def drawn(p: Tensor, u: Tensor) -> Tensor:
    """(n,) tokens from weights (n, V), by inverting their cumulative sum at `u` (n,)."""
    total = p.cumsum(-1)
    return torch.searchsorted(total, u[:, None] * total[:, -1:], right=True)[:, 0].clamp_max(p.shape[1] - 1)
