"""Write all that is left as soon as the answer has been decided (Prophet)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import spec
from ..canvas import Canvas
from ..context import Asking, Context
from ..denoiser import Denoiser
from ..prediction import Prediction
from . import Decoder

REGIONS = ("last", "anchor", "position", "blank")
CERTAIN = torch.finfo(torch.float32).max  # the gap of an answer that stands written: above any finite level


@dataclass
class Prophet(Decoder):
    """Commits early, each row on its own clock (arXiv 2508.19982).

    When the mean gap between the two best logits over a row's answer region reaches the level of the row's phase, every
    blank of the row takes its likeliest token at once. Until then `inner` writes, and sees what it would see alone.

    The answer region, wherever it lies in the row:

    last      the `count` positions before the predicted end of the text, or before the row's end if none is predicted
    anchor    the `count` positions that begin `at` positions after the last occurrence of the tokens `anchor` in what
              stands after the row's first blank, given, written or predicted; a row without it never commits early
    position  the `count` positions that begin `at` positions after the row's first blank
    blank     whatever is open

    Progress is the predictions a row has used over those it could use, one a position or `steps` a block. A region is
    judged by a pass that predicts all of it that is open; one that stands written is decided.

    With full attention and a cache that predicts beyond the block (any but dual) the region may lie anywhere and the
    whole row is filled. With the dual cache, and on block and leader models, nothing beyond the block is predicted:
    a region is judged in the last block it reaches into, and the current block alone is filled.

    `temperature` and `top_p` are those of `inner`; given here, they are handed to it. An early commit draws nothing.
    """

    reaches = True

    inner: Decoder | str = "confidence"  # what writes until the answer is decided
    high: float = 7.5  # logits; the level while progress is below `early`
    mid: float = 5.0  # from there until `late`
    low: float = 2.5  # from there on
    early: float = 0.33  # share of the row's predictions
    late: float = 0.67
    region: str = "last"
    anchor: Sequence[int] = ()  # token ids
    at: int = 0  # positions
    count: int = 5  # positions
    masked_only: bool = True  # judge by what is open alone; what is written has a wide gap
    base: Decoder = field(init=False, repr=False)  # `inner`, built
    wanted: Tensor | None = field(init=False, repr=False)  # (N,) what `inner` reads in this step; None: all of it
    first: Tensor = field(init=False, repr=False)  # (B, 1) where each row's first blank is
    stop: Tensor = field(init=False, repr=False)  # (B, 1) where each row ends
    total: Tensor = field(init=False, repr=False)  # (B,) predictions each row can use

    def __post_init__(self):
        super().__post_init__()
        base = spec.build("decoders", self.inner) if isinstance(self.inner, str) else self.inner
        if self.temperature or self.top_p < 1:
            base = replace(base, temperature=self.temperature or base.temperature, top_p=min(self.top_p, base.top_p))
        self.base, self.temperature, self.top_p = base, base.temperature, base.top_p
        for name in ("high", "mid", "low"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a gap between logits, 0 or more")
        if not 0 <= self.early <= self.late <= 1:
            raise ValueError(f"early is {self.early} and late {self.late}; expected 0 <= early <= late <= 1")
        if self.region not in REGIONS:
            raise ValueError(f"no answer region called {self.region!r}; there are: {', '.join(REGIONS)}")
        if not all(isinstance(token, int) for token in self.anchor):
            raise ValueError(f"anchor is {self.anchor!r}; expected a list of token ids")
        if self.region == "anchor" and not self.anchor:
            raise ValueError("the answer region is found by an anchor and none was given: set anchor=[token ids]")
        if self.at < 0 or self.count < 1:
            raise ValueError(f"at is {self.at} and count {self.count}; expected at >= 0 and at least one position")

    # What it asks of the loop follows from what it stands around.
    @property
    def ahead(self) -> bool:
        return self.base.ahead

    @property
    def revises(self) -> bool:
        return self.base.revises or not self.masked_only

    @property
    def takes_back(self) -> bool:
        return self.base.takes_back

    @property
    def vectors(self) -> int:
        return self.base.vectors

    @property
    def copies(self) -> int:
        return self.base.copies + 1

    @property
    def lingers(self) -> bool:
        return self.base.lingers

    @property
    def afresh(self) -> bool:
        return self.base.afresh

    @property
    def settles(self) -> bool:
        return self.base.settles

    @property
    def guide(self) -> str:
        return self.base.guide

    def meet(self, model: Denoiser) -> None:
        self.base.meet(model)

    def begin(self, canvas: Canvas) -> None:
        device = canvas.tokens.device
        shortest = int((canvas.lengths - canvas.first).min())
        if self.region == "position" and self.at >= shortest:
            raise ValueError(f"at is {self.at}; expected less than the {shortest} positions that a row has to write")
        self.first, self.stop = canvas.first.to(device)[:, None], canvas.lengths.to(device)[:, None]
        self.base.begin(canvas)

    def enter(self, canvas: Canvas) -> None:
        if canvas.number == 1:
            size = canvas.block.width
            share = min(canvas.budget, size)  # of a whole block; no more than it has positions
            rest = canvas.lengths - canvas.starts
            self.total = (rest // size * share + (rest % size).clamp(max=share)).to(canvas.tokens.device)
        self.base.enter(canvas)

    def reads(self, canvas: Canvas, ahead: bool) -> Tensor:
        theirs, self.wanted = self.base.reads(canvas, self.ahead), None
        further = ahead != self.ahead and bool((canvas.starts + canvas.block.width < canvas.lengths).any())
        chosen = type(self.base).reads is not Decoder.reads  # one that makes passes of its own says what they predict
        if chosen or not (further or self.revises != self.base.revises):
            return theirs
        self.wanted = theirs
        return torch.cat([theirs, canvas.reads(ahead, not self.masked_only, self.lingers)]).unique()

    def ask(self, canvas: Canvas, context: Context) -> Asking:
        return self.base.ask(canvas, context)

    def done(self, canvas: Canvas) -> bool:
        return self.base.done(canvas)

    def rests(self, canvas: Canvas) -> Tensor:
        return self.base.rests(canvas)

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        gap, _, _ = self.judge(canvas, seen)
        decided = (gap >= self.level(canvas)) & canvas.open.any(1)
        written = self.base.write(canvas, self.narrowed(canvas, seen))
        return torch.where(decided[:, None], self.guess(canvas, seen), written)

    def progress(self, canvas: Canvas) -> Tensor:
        """(B,) the share of its predictions that each row has used, this one included."""
        return canvas.taken / self.total

    def level(self, canvas: Canvas) -> Tensor:
        """(B,) the gap that decides in each row's phase."""
        progress = self.progress(canvas)
        return progress.new_tensor([self.high, self.mid, self.low])[self.phase(progress)]

    def phase(self, progress: Tensor) -> Tensor:
        """0, 1 or 2: early, middle, late."""
        return (progress >= self.early).long() + (progress >= self.late).long()

    def guess(self, canvas: Canvas, seen: Prediction) -> Tensor:
        """(B, W) what is written, and the likeliest token where a blank was read."""
        return torch.where(canvas.blank & seen.seen, seen.best, canvas.seen)

    def judge(self, canvas: Canvas, seen: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) mean gap over the answer region, -inf where it cannot be judged; (B, L) region; (B, L) guessed row."""
        line, known = canvas.tokens.clone(), torch.zeros_like(canvas.given)
        canvas.window.put(line, self.guess(canvas, seen))
        canvas.window.put(known, seen.seen)
        region = self.span(canvas, line)
        if self.region == "blank":
            region &= known
        here = canvas.window.take(region) & seen.seen
        unread = region & ~known & (canvas.tokens == canvas.mask_id)
        if self.masked_only:
            here &= canvas.blank
        count = here.sum(1)
        mean = torch.where(here, seen.gap, 0.0).sum(1) / count.clamp_min(1)
        mean = mean.clamp_max(CERTAIN).masked_fill(count == 0, CERTAIN)
        return mean.masked_fill(~region.any(1) | unread.any(1), -torch.inf), region, line

    def span(self, canvas: Canvas, line: Tensor) -> Tensor:
        """(B, L) the answer region of rows that read (B, L) `line`."""
        place = torch.arange(line.shape[1], device=line.device)[None]
        own = (place >= self.first) & (place < self.stop)
        start, stop = self.first, self.stop
        match self.region:
            case "position":
                start = self.first + self.at
                stop = start + self.count
            case "anchor":
                found = own & (place + len(self.anchor) <= self.stop)
                for offset, token in enumerate(self.anchor):
                    found &= (line == token).roll(-offset, 1)
                last = torch.where(found, place, -1).amax(1, keepdim=True)
                start = torch.where(last < 0, self.stop, last + len(self.anchor) + self.at)
                stop = start + self.count
            case "last":
                if canvas.end is not None:
                    ended = own & (line == canvas.end)
                    stop = torch.where(ended, place, self.stop).amin(1, keepdim=True)
                start = stop - self.count
        return own & ~canvas.given & (place >= start) & (place < stop)

    def narrowed(self, canvas: Canvas, seen: Prediction) -> Prediction:
        """What `inner` would have been told alone."""
        if self.wanted is None:
            return seen
        here = torch.isin(seen.read, self.wanted)
        return Prediction(seen.logits[here], seen.read[here], canvas)
