"""log p(continuation | context) of many pairs: exactly by a next-token model, by the diffusion bound otherwise.

Shapes: P pairs, B rows of a pass, L positions, D draws, M tokens asked about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .. import rules
from ..codecs.text import Text
from ..context import Context, Rule
from ..denoiser import Denoiser
from ..nn import reading
from ..objectives import Batch, leader, masked
from ..processes import groups
from . import masks
from .expected import Expected
from .likelihood import Mode, bounded, exactly
from .streams import Streams, Together, separable

Protocol = Literal["exact-count", "diffullama"]
Report = Callable[[int, int], None]
Way = Callable[["Rows"], "Found"]
PROTOCOLS = ("exact-count", "diffullama")
POSITIONS = 4096  # read in one pass, at most


@dataclass(frozen=True)
class Pair:
    """Token ids; the context holds one at least."""

    context: Sequence[int]
    continuation: Sequence[int]
    key: int = 0  # pairs of one key are hidden alike: the options of one question
    option: int = 0  # its number among them


@dataclass(frozen=True)
class Conditional:
    """What pairs cost in nats, each on the whole continuation."""

    nats: Tensor  # (P,) float64 -log p, an upper bound on it, or under the protocol diffullama the mean of its grid
    noise: Tensor  # (P,) standard error of the random draws, from above; 0 when exact
    tokens: Tensor  # (P,) int64 of the continuation
    draws: Tensor = field(repr=False)  # (P, D) float64, of which `nats` is the mean
    greedy: Tensor | None = field(repr=False)  # (P,) bool: is each token the likeliest? None where that means nothing
    exact: bool
    bound: bool  # not below -log p; true of exact ones as well
    layout: str
    forwards: Tensor = field(repr=False)  # (P,) float64 rows read; what several pairs shared is shared out
    cut: int = 0  # contexts that were too long and lost their beginning

    def less(self, one: int, other: int) -> tuple[float, float]:
        """Nats of pair `one` less those of `other`, and the standard error of the draws: shared noise cancels."""
        apart = self.draws[one] - self.draws[other]
        return float(apart.mean()), 0.0 if self.exact else float(error(apart))


def error(draws: Tensor) -> Tensor:
    """(..., D) draws in the order of their levels to (...) the standard error of their mean, from above.

    Half the mean square of what neighbours are apart, the last and the first being such, is the variance of a draw, and
    more than it by what levels differ, which is no error of a mean that has all of them. Of one draw nothing is known.
    """
    if draws.shape[-1] < 2:
        return torch.full_like(draws[..., 0], math.nan)
    return ((draws - draws.roll(1, -1)).square().mean(-1) / 2 / draws.shape[-1]).sqrt()


def encoded(text: Text, context: str, continuation: str, key: int = 0, option: int = 0) -> Pair:
    """A pair of texts. Spaces at the context's end go to the continuation, and both are encoded together, so that words
    are split as in running text: as lm-evaluation-harness does it.

    ValueError for an empty continuation, and for an empty context where no token begins a text.
    """
    kept = context.rstrip()
    whole = text.encode(context + continuation)
    front = [] if text.start_id is None else [text.start_id]
    before, behind = [*front, *text.encode(kept)], whole[len(text.encode(kept)) :]
    if not behind:
        raise ValueError(f"there is nothing to score: the continuation {continuation!r} adds no token to its context")
    if not before:
        raise ValueError("a context is empty and the tokenizer has no beginning-of-text token to put in its place")
    return Pair(before, behind, key, option)


def conditional(
    model: Denoiser,
    pairs: Sequence[Pair],
    *,
    mode: Mode = "auto",
    protocol: Protocol = "exact-count",
    block: int | None = None,
    draws: int = 32,
    seed: int = 0,
    positions: int = POSITIONS,
    report: Report | None = None,
) -> Conditional:
    """-log p(continuation | context) of each pair, in nats.

    mode       exact: token by token under the causal rule; bound: the diffusion bound; auto: exact for causal models
    protocol   exact-count: the bound; diffullama: the 32-point grid of 2410.17891, which is no bound
    block      positions per block of the bound; None: what the model was trained with; 0: the whole row under full
               attention. A leader model's blocks count from the row's beginning, and their leaders are exact
    draws      noise draws per pair, their levels evenly spread
    positions  of one pass: they set its memory and no number
    report     told how many pairs are done, of how many

    ValueError for a mode or block that the model does not have, and for pairs that do not fit into its context.
    """
    if draws < 1 or positions < 1:
        raise ValueError(f"expected at least one draw and one position a pass, got {draws} and {positions}")
    for name, given, known in (("mode", mode, ("auto", "exact", "bound")), ("protocol", protocol, PROTOCOLS)):
        if given not in known:
            raise ValueError(f"no {name} called {given!r}; there are: {', '.join(known)}")
    if not pairs:
        raise ValueError("there is nothing to score: no pair of context and continuation was given")
    exact = mode == "exact" or (mode == "auto" and model.attention.kind == "causal")
    grid = protocol == "diffullama" and not exact
    draws = 1 if exact else masks.STEPS if grid else draws
    layout, way = chosen(model, exact, grid, block, draws, positions)
    fitted = [fit(pair, room(model, model.context_length, exact)) for pair in pairs]
    each = torch.zeros(len(pairs), draws, dtype=torch.float64)
    forwards, greedy = torch.zeros(len(pairs), dtype=torch.float64), torch.zeros(len(pairs), dtype=torch.bool)
    device, was, done = next(model.parameters(), torch.empty(0)).device, model.training, 0
    model.eval()
    try:
        with torch.inference_mode():
            for which in chunks(fitted, positions, draws):
                rows = Rows.of([fitted[i] for i in which], seed, device)
                reading.unmasked(model, rows.tokens, rows.answer)
                found, at = way(rows), torch.tensor(which)
                each[at] = found.nats.double().cpu()
                forwards[at], greedy[at] = found.forwards.double().cpu(), found.greedy.cpu()
                done += len(which)
                if report:
                    report(done, len(pairs))
    finally:
        model.train(was)
    return Conditional(
        each.mean(1),
        torch.zeros_like(forwards) if exact else error(each),
        torch.tensor([len(pair.continuation) for pair in pairs]),
        each,
        greedy if exact else None,
        exact,
        not grid,
        layout,
        forwards,
        sum(len(one.context) < len(pair.context) for one, pair in zip(fitted, pairs, strict=True)),
    )


def room(model: Denoiser, positions: int | None, exact: bool) -> int | None:
    """Tokens that a pair may have in so many positions: of next-token predictors nothing reads the last one."""
    return None if positions is None else positions + (reading.lag(model) if exact else 0)


def fit(pair: Pair, room: int | None) -> Pair:
    """A pair whose context has lost its beginning where it is longer than the model's."""
    if not pair.context or not pair.continuation:
        raise ValueError("a pair needs at least one token of context and one of continuation")
    over = 0 if room is None else len(pair.context) + len(pair.continuation) - room
    if over >= len(pair.context):
        raise ValueError(f"a continuation has {len(pair.continuation)} tokens; the model's context holds {room}")
    return replace(pair, context=pair.context[over:]) if over > 0 else pair


def chunks(pairs: Sequence[Pair], positions: int, draws: int) -> Iterator[list[int]]:
    """Numbers of pairs that are read together, by length. Many draws fill a pass with rows of one length alone, so
    that nothing is padded; where each pair is one row, rows of nearly one length are padded to the longest."""
    size = [len(pair.context) + len(pair.continuation) for pair in pairs]
    chunk: list[int] = []
    for i in sorted(range(len(pairs)), key=lambda i: (size[i], pairs[i].key, i)):
        if chunk:
            longest = size[chunk[0]] + (size[chunk[0]] // 4 if draws < 8 else 0)
            if size[i] > longest or (len(chunk) + 1) * size[i] > positions:
                yield chunk
                chunk = []
        chunk.append(i)
    yield chunk


@dataclass(frozen=True)
class Rows:
    """Pairs side by side, shorter ones followed by zeros."""

    tokens: Tensor  # (B, L)
    answer: Tensor  # (B, L) bool: the continuation
    starts: Tensor  # (B,) where it begins
    lengths: Tensor  # (B,)
    keys: Tensor  # (B,)
    options: Tensor  # (B,)
    seed: int

    @classmethod
    def of(cls, pairs: Sequence[Pair], seed: int, device: torch.device) -> Rows:
        whole = [[*pair.context, *pair.continuation] for pair in pairs]
        width = max(map(len, whole))
        starts = torch.tensor([len(pair.context) for pair in pairs], device=device)
        lengths = torch.tensor(list(map(len, whole)), device=device)
        at = torch.arange(width, device=device)
        return cls(
            torch.tensor([row + [0] * (width - len(row)) for row in whole], device=device),
            (at >= starts[:, None]) & (at < lengths[:, None]),
            starts,
            lengths,
            torch.tensor([pair.key for pair in pairs], device=device),
            torch.tensor([pair.option for pair in pairs], device=device),
            seed,
        )

    def some(self, which: Tensor) -> Rows:
        """Those of `which` (B,) bool."""
        parts = {name: value[which] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts)

    @property
    def batch(self) -> Batch:
        """The same for objectives: what stands behind a row is another document."""
        at = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        beyond = (at >= self.lengths[:, None]).long()
        return Batch(self.tokens, self.answer, beyond if bool(beyond.any()) else None, self.keys, self.seed)


@dataclass(frozen=True)
class Found:
    """What a chunk of pairs came to."""

    nats: Tensor  # (B, D)
    forwards: Tensor  # (B,)
    greedy: Tensor  # (B,) bool


def chosen(model: Denoiser, exact: bool, grid: bool, block: int | None, draws: int, positions: int) -> tuple[str, Way]:
    """How a model reads pairs, in words and as a function."""
    if exact:
        return exactly(model)[0], lambda rows: read_exactly(model, rows, positions)
    layout, _ = bounded(model, 0 if grid else block, draws)
    size = 0 if grid else model.attention.block or 0 if block is None else block

    def bound(rows: Rows) -> Found:
        masked.diffusible(model, rows.batch)
        if grid:
            return read_grid(model, rows, positions)
        return read_blocks(model, rows, size, draws) if size else read_whole(model, rows, draws, positions)

    return f"DiffuLLaMA's grid, {layout}" if grid else layout, bound


def read_exactly(model: Denoiser, rows: Rows, positions: int) -> Found:
    """Next-token prediction."""
    cost, best, forwards = causally(model, rows, positions)
    return Found(cost.sum(1)[:, None], forwards, (best | ~rows.answer).all(1))


def causally(model: Denoiser, rows: Rows, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L) surprise at each answer's tokens read from the left, 0 elsewhere; which are the likeliest (B, L); and (B,)
    forwards. The last token is looked at by nobody, so contexts with one token behind are one row."""
    last, back = rows.lengths[:, None] - 1, reading.lag(model)
    inputs = rows.tokens.scatter(1, last, 0)[:, : rows.tokens.shape[1] - back]
    row, at = rows.answer.nonzero(as_tuple=True)
    found, likeliest, forwards = surprises(
        model, inputs, rows.lengths, rules.causal, (row, at - back), rows.tokens[row, at], positions
    )
    cost, best = found.new_zeros(rows.tokens.shape), torch.zeros_like(rows.answer)
    cost[row, at], best[row, at] = found, likeliest
    return cost, best, forwards


def read_grid(model: Denoiser, rows: Rows, positions: int) -> Found:
    """Plain means of what each pass of the grid hides."""
    drawn = masks.grid(rows.answer, rows.starts, rows.seed, rows.keys, rows.options)
    cost, forwards = hidden(model, rows, [each.hit for each in drawn], positions)
    nats = (cost * torch.stack([each.weight for each in drawn])).sum(-1)
    return Found(nats.T, forwards, rows.lengths < 0)


def read_whole(model: Denoiser, rows: Rows, draws: int, positions: int) -> Found:
    """Full attention over context and continuation. One pass hides everything, which is the level n itself. Models that
    predict next tokens are read from the left once more, for what a token costs with little else hidden; two tokens
    are sooner asked one at a time."""
    whole, n = torch.zeros_like(rows.tokens), rows.answer.sum(1)
    drawn = masks.rounds(rows.answer, whole, rows.starts, rows.seed, rows.keys, draws)
    cost, forwards = hidden(model, rows, [rows.answer, *(each.hit for each in drawn)], positions)
    causal, some = None, n > 2
    if (model.shifted or model.attention.leads) and bool(some.any()):
        causal = torch.full_like(cost[0], math.inf)
        causal[some], _, more = causally(model, rows.some(some), positions)
        forwards = forwards.index_add(0, some.nonzero()[:, 0], more)
    known = Expected.of(cost[0], causal, rows.answer, whole)
    return Found(known.draws(drawn, cost[1:]), forwards, rows.lengths < 0)


def hidden(model: Denoiser, rows: Rows, hits: Sequence[Tensor], positions: int) -> tuple[Tensor, Tensor]:
    """(D, B, L) surprise at what is hidden by each of `hits` (B, L), 0 elsewhere; and (B,) forwards. Rows of which
    nothing is hidden are not read."""
    back = reading.lag(model) if model.shifted or model.attention.leads else 0
    hit = torch.stack(list(hits))
    turn, which = hit.any(-1).nonzero(as_tuple=True)
    tokens, some = rows.tokens[which], hit[turn, which]
    row, at = some.nonzero(as_tuple=True)
    noisy, asked = tokens.masked_fill(some, model.mask_id), (row, at - back)
    found, _, forwards = surprises(model, noisy, rows.lengths[which], None, asked, tokens[row, at], positions)
    cost = found.new_zeros(hit.shape)
    cost[turn[row], which[row], at] = found
    return cost, forwards.new_zeros(len(rows.tokens)).index_add(0, which, forwards)


def read_blocks(model: Denoiser, rows: Rows, size: int, draws: int) -> Found:
    """The layouts of block and leader models: every noisy block sees the clean text before it. Leader models tell of
    all tokens in the pass over the clean copy what next-token prediction says of them."""
    batch, leads = rows.batch, model.shifted or model.attention.leads
    leading = leader.leading(batch, size - 1) & leads
    targets, parts = batch.targets & ~leading, groups(batch.tokens.shape, size, batch.documents, batch.tokens.device)
    drawn = masks.rounds(targets, parts, rows.starts, rows.seed, rows.keys, draws)
    if separable(model, batch.tokens.shape[1]):
        first = int(rows.starts.min()) // size * size
        streams = Streams(model, batch, size, leads=leads, first=first, every=True)
    else:
        streams = Together(model, batch, size, leads=leads)
    known = Expected.of(streams.hidden(targets), streams.clean if leads else None, targets, parts)
    nats = known.draws(drawn, torch.stack([streams.hidden(each.hit) for each in drawn]))
    leaders = streams.clean.where(batch.targets & leading, 0.0).sum(1)
    passes = torch.stack([targets, *(each.hit for each in drawn)]).any(-1).sum(0)  # that ask a row anything
    return Found(nats + leaders[:, None], 1 + passes.double(), rows.lengths < 0)


def surprises(
    model: Denoiser,
    inputs: Tensor,
    lengths: Tensor,
    rule: Rule | None,
    asked: tuple[Tensor, Tensor],
    answers: Tensor,
    positions: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(M,) nats of `answers` (M,) at `asked` rows and positions of `inputs` (R, L), whether each is the likeliest (M,),
    and (R,) what each row took in forwards.

    Rows that are equal are read once, whatever is asked of them: options that are hidden alike often are.
    """
    length = inputs.shape[1]
    marked = torch.cat([inputs, lengths[:, None]], dim=1)
    rows, where, shares = marked.unique(dim=0, return_inverse=True, return_counts=True)
    flat, back = (where[asked[0]] * length + asked[1]).unique(return_inverse=True)
    cost = torch.zeros(len(answers), device=inputs.device)
    best = torch.zeros(len(answers), dtype=torch.bool, device=inputs.device)
    per = max(1, positions // length)
    for first in range(0, len(rows), per):
        some, ends = rows[first : first + per, :-1], rows[first : first + per, -1]
        low, high = torch.searchsorted(flat, torch.tensor([first, first + per], device=flat.device) * length).tolist()
        padded = rule is None and bool((ends != length).any())
        found = reading.logits(
            model, some, Context(rule=rules.within(ends) if padded else rule), flat[low:high] - first * length
        ).float()
        here = ((back >= low) & (back < high)).nonzero()[:, 0]
        which = back[here] - low
        cost[here] = found.logsumexp(-1)[which] - found[which, answers[here]]
        best[here] = found.argmax(-1)[which] == answers[here]
    return cost, best, 1 / shares[where].double()
