"""Commit many tokens at a low level, and take back those that the rest of the text does not confirm (WINO)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..canvas import Canvas
from ..context import Ask, Asking, Context, Rule, Window
from ..prediction import Prediction, pieces
from . import Decoder, top

SHARE = 7  # tenths of a row's open blanks that one step may commit,
LEAST = 5  # but so many may be always,
MOST = 20  # and more never
FIRST = 30  # what counts as the commits of the step before the first


@dataclass
class Wino(Decoder):
    """Wide-in, narrow-out (arXiv 2507.18578), by the rules of the published code.

    Behind the text stands a shadow of the block: masks with the block's positions, which see everything but the token
    whose place they take, and which nobody else sees. They say how probable each written token would be were it not
    there. A step commits the blanks above `tau1`, no more than min(max(floor(0.7 m), 5), 20) of m, and at least one. If
    it commits several it also takes back the tokens below `tau2` of those that stood before, the worst of them, and
    fewer than the step before committed: so n steps gain n tokens.

    A shifted network speaks of a token at its left neighbour. There the shadow holds a copy of each left neighbour too,
    which sees what that neighbour sees, but the masks in place of the token it speaks of. The publication has none.

    The leader of a leader model's block, and the first token of a shifted block model's, are not questioned: they are
    predicted from what stands before the block alone.
    """

    afresh = True
    takes_back = True

    tau1: float = 0.6  # probability above which a blank is committed
    tau2: float = 0.9  # probability below which a written token is taken back
    back: Tensor = field(init=False, repr=False)  # (B, W) probability of written tokens in their own absence
    last: Tensor = field(init=False, repr=False)  # (B,) how many tokens each row's previous step committed

    def __post_init__(self):
        super().__post_init__()
        for name in ("tau1", "tau2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a probability, or above 1")

    def enter(self, canvas: Canvas) -> None:
        self.last = torch.full_like(canvas.taken, FIRST)

    def ask(self, canvas: Canvas, context: Context) -> Asking:
        """One pass, longer by the shadow where there is something to verify."""
        self.back = torch.full(canvas.seen.shape, torch.inf, device=canvas.tokens.device)
        row, slot = self.verifiable(canvas).nonzero(as_tuple=True)
        if not len(row):
            return (yield Ask(canvas.tokens, context))
        shadow = Shadow(canvas, context)
        read = torch.cat([shadow.moved(context.read), shadow.slots(row, slot)])
        logits = yield Ask(shadow.tokens, replace(shadow.context, read=read))
        logits, theirs = logits[: -len(row)], logits[-len(row) :]
        theirs[:, canvas.mask_id] = -torch.inf
        back = torch.full(canvas.block.take(canvas.tokens).shape, torch.inf, device=logits.device)
        back[row, slot] = chance(theirs, canvas.block.take(canvas.tokens)[row, slot])
        canvas.block.put(self.back, back)
        return logits

    def verifiable(self, canvas: Canvas) -> Tensor:
        """(B, block) written tokens of rows that go on, whose prediction the block has a part in."""
        block = canvas.block
        written = (block.take(canvas.tokens) != canvas.mask_id) & ~block.take(canvas.given)
        wanted = written & canvas.open.any(1, keepdim=True)
        if canvas.look.leads or (canvas.shifted and canvas.look.exact):
            wanted[:, 0] = False
        if canvas.shifted:
            wanted = wanted & (block.positions(wanted.device) > 0)
        return wanted

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed, left = canvas.open & seen.seen, canvas.open.sum(1)
        cap = (left * SHARE // 10).clamp(LEAST, MOST)
        chosen = top(p, allowed & (p > self.tau1), cap) | top(p, allowed, 1)
        count = chosen.sum(1)
        rejected = (self.back < self.tau2) & (count > 1)[:, None]
        if canvas.step + 1 >= canvas.budget:  # nothing that is taken back now could be written again
            rejected = torch.zeros_like(rejected)
        rejected = top(-self.back, rejected, self.last - 1)
        self.last = torch.where(left > 0, count, self.last)
        return torch.where(chosen, token, torch.where(rejected, canvas.mask_id, canvas.seen))


class Shadow:
    """A canvas with the shadow of its block behind it: W positions of the text, S copies if shifted, S masks."""

    def __init__(self, canvas: Canvas, context: Context):
        assert context.window is not None
        assert context.window.starts == 0, "the shadow stands behind the whole text"
        assert context.positions is None
        self.width, self.size, self.shifted = context.window.width, canvas.block.width, canvas.shifted
        self.total = self.width + self.size * (1 + self.shifted)
        device, rows = canvas.tokens.device, len(canvas.tokens)
        self.starts = canvas.starts.to(device)
        place = self.starts[:, None] + torch.arange(self.size, device=device)
        before = (place - 1).clamp(min=0)
        text = canvas.tokens[:, : self.width]
        masks = torch.full_like(place, canvas.mask_id)
        copies = [text.gather(1, before)] if self.shifted else []
        self.tokens = torch.cat([text, *copies, masks], 1)
        here = torch.arange(self.width, device=device).expand(rows, -1)
        positions = torch.cat([here, *([before] if self.shifted else []), place], 1)
        window = Window(0, self.total)
        self.context = replace(context, window=window, positions=positions, rule=self.rule(context.rule))

    def moved(self, read: Tensor | None) -> Tensor:
        """(N,) indices into (B, W) to the same places of the longer rows."""
        assert read is not None
        return read // self.width * self.total + read % self.width

    def slots(self, row: Tensor, slot: Tensor) -> Tensor:
        """Where the tokens at `slot` of the block are verified: at masks, or one position behind copies if shifted."""
        return row * self.total + self.width + slot + int(self.shifted)

    def rule(self, base: Rule | None) -> Rule:
        """`base` for the text and for what takes part in it at other places, less what a shadow must not see."""
        width, size, starts = self.width, self.size, self.starts
        masks = self.total - size  # where the masks begin

        def rule(q: Tensor, k: Tensor) -> Tensor:
            first = starts[:, None, None]

            def place(at: Tensor) -> Tensor:
                return torch.where(at < width, at, first + torch.where(at < masks, at - width - 1, at - masks))

            here, there = place(q), place(k)
            text, copy = q < width, (q >= width) & (q < masks)
            away = torch.where(copy, (there != here) & (there != here + 1), there != here)
            allowed = ((k < width) & (text | away)) | ((k >= masks) & ~text)
            if base is not None:
                allowed = allowed & base(here, there)
            return allowed | (copy & (k == q))

        return rule


def chance(logits: Tensor, tokens: Tensor) -> Tensor:
    """(N,) float32 probabilities of `tokens` (N,) under `logits` (N, V)."""
    normaliser = logits.new_empty(len(logits), dtype=torch.float32)
    for here in pieces(logits):
        normaliser[here] = logits[here].float().logsumexp(-1)
    return (logits.gather(-1, tokens[:, None])[:, 0].float() - normaliser).exp()
