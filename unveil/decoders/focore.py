"""Contrast the text with itself less its densest early words, and commit in parallel once these stand (FoCore)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from ..canvas import Canvas
from ..context import Ask, Asking, Context
from ..noise import uniform
from ..prediction import Prediction
from . import Decoder, quota, top

HIDING = ("dense", "random", "none")
CHOSEN = 3  # keys the noise that picks what a control experiment hides
RARE = 12.0  # nats of surprise from which on a token is as informative as can be
DENSE = 0.5  # score from which on a token counts as dense
IDLE = 2  # steps without a stable candidate that end committing in parallel


@dataclass
class Focore(Decoder):
    """Reconstruction of FoCore, and of FoCore_A by `adaptive` (arXiv 2605.01373), whose algorithms were not public.

    A position has converged when its argmax stays and its ten likeliest tokens drift by less than `epsilon` nats
    (Jensen-Shannon, without guidance) in `repeat` predictions. What is written or has converged scores a q: a is the
    share of blanks within `reach` positions when it first was, q how informative its token is. Dense are those of 0.5
    or more, the earliest ceil(rho c) of a row of c written tokens. The guide it brings, contrast(scale, alpha), hides
    the dense tokens in a second look. Commits go as in the confidence decoder.

    adaptive: when the dense tokens neither change nor drift for `repeat` steps, a row commits every stable blank of
    guided probability `tau` within `span` positions from its first blank, until a dense token comes, or two steps find
    none. While so, a second look that changed no argmax there is made at every fourth step only.

    Here q is 0 for the end token and 1 for others, or min(1, -log u / 12) by a `table` of log frequencies log u.
    """

    scale: float = 0.5  # strength of the contrast
    alpha: float = 0.1  # tokens less probable than this share of the best one are left out
    hide: str = "dense"  # or "random", as many written tokens by lot, or "none": control experiments
    rho: float = 0.25  # dense tokens for each written one, at most
    epsilon: float = 0.02  # nats of drift that count as standing still
    repeat: int = 2  # predictions that must agree on it
    reach: int = 8  # positions to either side that earliness is measured by
    table: str = ""  # a JSON file: log frequencies of tokens, a list or an object by token id
    adaptive: bool = False
    tau: float = 0.7
    span: int = 32
    every: int = 4  # a second look at least each so many steps
    drift: Drift = field(init=False, repr=False)
    early: Tensor = field(init=False, repr=False)  # (B, L) share of blanks around when it was first written or settled
    since: Tensor = field(init=False, repr=False)  # (B, L) prediction of the row at which that was; -1: not yet
    dense: Tensor = field(init=False, repr=False)  # (B, L)
    pace: Pace = field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.hide not in HIDING:
            raise ValueError(f"hide is {self.hide!r}; there are: {', '.join(HIDING)}")
        for name in ("scale", "rho", "epsilon"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("repeat", "reach", "span", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")

    @property
    def guide(self) -> str:
        return f"contrast(scale={self.scale}, alpha={self.alpha})"

    @property
    def revises(self) -> bool:
        return self.adaptive  # it asks whether dense tokens still drift

    def begin(self, canvas: Canvas) -> None:
        device = canvas.tokens.device
        self.worth = frequencies(self.table).div(-RARE).clamp(0, 1).to(device) if self.table else None
        self.drift = Drift(canvas, self.epsilon)
        self.early = torch.zeros(canvas.tokens.shape, device=device)
        self.since = torch.full_like(canvas.tokens, -1)
        self.dense = torch.zeros_like(canvas.given)
        place = torch.arange(canvas.tokens.shape[1], device=device)
        self.lot = uniform(canvas.seeds[:, None], CHOSEN, place)  # (B, L)

    def enter(self, canvas: Canvas) -> None:
        if canvas.look.exact:
            self.dense = torch.zeros_like(self.dense)  # what is finished is kept, so it can hide nothing
        self.pace = Pace(canvas, self.repeat, self.every)
        canvas.hidden = self.hidden(canvas, canvas.tokens)

    def ask(self, canvas: Canvas, context: Context) -> Asking:
        logits = yield Ask(canvas.tokens, context)
        logits[:, canvas.mask_id] = -torch.inf
        self.drift.add(canvas, context, logits)
        return logits

    def write(self, canvas: Canvas, seen: Prediction) -> Tensor:
        token, p = seen.choose(self.temperature, self.top_p)
        allowed, active = canvas.open & seen.seen, canvas.open.any(1)
        chosen = top(p, allowed, quota(canvas))
        near = stable = allowed
        if self.adaptive:
            near = allowed & self.near(canvas)
            still = (self.drift.moved < self.epsilon) & (self.drift.same >= self.repeat)
            stable = near & canvas.window.take(still) & (p >= self.tau)
            chosen = torch.where((self.pace.quick & stable.any(1))[:, None], stable, chosen)
        written = torch.where(chosen, token, canvas.seen)
        tokens = canvas.tokens.clone()
        canvas.window.put(tokens, written)
        before = self.dense
        self.dense = torch.where(active[:, None], self.densest(canvas, tokens, active), before)
        hidden = self.hidden(canvas, tokens)
        if self.adaptive:
            turned = near & (canvas.window.take(self.drift.best) != seen.best)
            grown = (self.dense & ~before).any(1)
            looked, stands = canvas.hidden.any(1), (self.dense == before).all(1) & self.stand(canvas)
            self.pace.step(active, stands, grown, looked, turned.any(1), stable.any(1))
            hidden &= ~self.pace.rests()[:, None]
        canvas.hidden = torch.where(active[:, None], hidden, canvas.hidden)
        return written

    def stand(self, canvas: Canvas) -> Tensor:
        """(B,) whether the dense tokens drift by less than `epsilon` on average; finished ones do not drift."""
        moved = torch.where(self.dense & inside(canvas), self.drift.moved, 0.0).sum(1)
        return moved < self.epsilon * self.dense.sum(1).clamp_min(1)

    def near(self, canvas: Canvas) -> Tensor:
        """(B, W) the `span` positions from each row's first blank of the block on."""
        place = canvas.window.positions(canvas.tokens.device).expand(canvas.seen.shape)
        first = place.masked_fill(~canvas.open, place.shape[1] + canvas.tokens.shape[1]).amin(1, keepdim=True)
        return (place >= first) & (place < first + self.span)

    def densest(self, canvas: Canvas, tokens: Tensor, active: Tensor) -> Tensor:
        """(B, L) the dense tokens after a step that made the text `tokens`."""
        ours = ~canvas.given
        blank, done = ours & (canvas.tokens == canvas.mask_id), ours & (tokens != canvas.mask_id)
        settled = done | (ours & (self.drift.calm >= self.repeat))
        new = settled & (self.since < 0) & active[:, None]
        share = around(blank, self.reach) / around(ours, self.reach).clamp_min(1)
        self.early = torch.where(new, share, self.early)
        self.since = torch.where(new, canvas.taken[:, None], self.since)
        if canvas.look.exact:
            done, settled = done & inside(canvas), settled & inside(canvas)
        score = self.early * self.informative(canvas, torch.where(done, tokens, self.drift.best))
        count = (done.sum(1) * self.rho).ceil().long()
        return top(-self.since.float(), settled & (self.since >= 0) & (score >= DENSE), count)

    def informative(self, canvas: Canvas, tokens: Tensor) -> Tensor:
        """(B, L) q of `tokens`: 0 says nothing, 1 much."""
        worth = torch.ones(tokens.shape, device=tokens.device)
        if self.worth is not None:
            worth = self.worth[tokens.clamp(max=len(self.worth) - 1)]
        return worth if canvas.end is None else worth.masked_fill(tokens == canvas.end, 0.0)

    def hidden(self, canvas: Canvas, tokens: Tensor) -> Tensor:
        """(B, L) what the second look hides of the text `tokens`."""
        done = ~canvas.given & (tokens != canvas.mask_id)
        if self.hide == "none":
            return torch.zeros_like(done)
        dense = self.dense & done
        if self.hide == "dense":
            return dense
        return top(self.lot, done & inside(canvas) if canvas.look.exact else done, dense.sum(1))


class Drift:
    """How far the likeliest tokens of each position moved between its last two predictions. Everything is (B, L)."""

    KEPT = 10  # tokens of a distribution that are kept

    def __init__(self, canvas: Canvas, epsilon: float):
        device, shape = canvas.tokens.device, canvas.tokens.shape
        self.epsilon = epsilon
        self.moved = torch.full(shape, inf, device=device)  # nats
        self.calm = torch.zeros(shape, dtype=torch.long, device=device)  # predictions in a row within epsilon
        self.same = torch.zeros_like(self.calm)  # predictions in a row with the same argmax as before
        self.ids = torch.full((*shape, self.KEPT), -1, device=device)
        self.p = torch.zeros((*shape, self.KEPT), device=device)

    @property
    def best(self) -> Tensor:
        """The likeliest token; -1 where nothing was predicted yet."""
        return self.ids[..., 0]

    def add(self, canvas: Canvas, context: Context, logits: Tensor) -> None:
        """Logits (N, V) of what `context` reads."""
        read = context.read
        assert read is not None
        row = read // canvas.window.width
        at = row, canvas.window.positions(read.device).expand(canvas.seen.shape).reshape(-1)[read]
        best = logits.topk(min(self.KEPT, logits.shape[1]), dim=-1)
        ids, p = best.indices, best.values.float().softmax(-1)
        kept = slice(0, ids.shape[1])
        old, known = self.ids[at][:, kept], self.ids[at][:, 0] >= 0
        moved = divergence(ids, p, old, self.p[at][:, kept]).masked_fill(~known, inf)
        same = known & (old[:, 0] == ids[:, 0])
        self.calm[at] = torch.where(same & (moved < self.epsilon), self.calm[at] + 1, 0)
        self.same[at] = torch.where(same, self.same[at] + 1, 0)
        self.moved[at] = moved
        self.ids[(*at, kept)], self.p[(*at, kept)] = ids, p


class Pace:
    """When each row commits in parallel, and when it goes without a second look. Everything is (B,)."""

    def __init__(self, canvas: Canvas, repeat: int, every: int):
        self.repeat, self.every = repeat, every
        self.calm = torch.zeros_like(canvas.taken)  # steps in which the dense tokens stood
        self.idle = torch.zeros_like(canvas.taken)  # steps in parallel that found no stable candidate
        self.ago = torch.zeros_like(canvas.taken)  # steps since the last second look
        self.quick = torch.zeros_like(canvas.taken, dtype=torch.bool)
        self.turned = torch.ones_like(self.quick)  # did the last second look change an argmax?

    def step(self, active: Tensor, stands: Tensor, grown: Tensor, looked: Tensor, turned: Tensor, stable: Tensor):
        """What a step found: dense tokens that stand, or are new; a second look that turned an argmax; candidates."""
        calm = torch.where(stands, self.calm + 1, 0)
        idle = torch.where(self.quick & ~stable, self.idle + 1, 0)
        quick = torch.where(self.quick, ~grown & (idle < IDLE), calm >= self.repeat)
        self.calm, self.idle = torch.where(active, calm, self.calm), torch.where(active, idle, self.idle)
        self.ago = torch.where(active, torch.where(looked, 1, self.ago + 1), self.ago)
        self.turned = torch.where(active & looked, turned, self.turned)
        self.quick = torch.where(active, quick, self.quick)

    def rests(self) -> Tensor:
        """Rows that need no second look in the next step."""
        return self.quick & ~self.turned & (self.ago < self.every)


def divergence(ids: Tensor, p: Tensor, old_ids: Tensor, old: Tensor) -> Tensor:
    """(N,) nats, Jensen-Shannon between `p` on `ids` and `old` on `old_ids`, all (N, K): over the union of the ids."""
    match = (ids[:, :, None] == old_ids[:, None]).to(p.dtype)
    there, here = (match * old[:, None]).sum(-1), (match * p[:, :, None]).sum(-2)
    first, second = (torch.xlogy(a, 2 * a / (a + b).clamp_min(1e-30)).sum(-1) for a, b in ((p, there), (old, here)))
    return (first + second) / 2


def around(x: Tensor, reach: int) -> Tensor:
    """(B, L) how many of the `reach` positions to either side are True in `x`, not counting the position itself."""
    length = x.shape[1]
    total = torch.nn.functional.pad(x.long().cumsum(1), (1, 0))
    here = torch.arange(length, device=x.device)
    return total[:, (here + reach + 1).clamp(max=length)] - total[:, (here - reach).clamp(min=0)] - x.long()


def inside(canvas: Canvas) -> Tensor:
    """(B, L) True in the current block."""
    here = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
    start = canvas.starts.to(here.device)[:, None]
    return (here >= start) & (here < start + canvas.block.width)


def frequencies(path: str) -> Tensor:
    """(n,) log frequencies from a JSON file; the last stands for every token beyond, of which nothing is known."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if isinstance(found, list):
        found = dict(enumerate(found))
    pairs = found.items() if isinstance(found, dict) else [("", "")]
    if not all(str(token).isdecimal() and isinstance(level, float | int) for token, level in pairs):
        raise ValueError(f"{path} holds no table; expected a list of log frequencies or an object by token id")
    table = torch.full((max(map(int, found), default=-1) + 2,), -inf)
    for token, level in found.items():
        table[int(token)] = level
    return table
