"""The canvas: the sequences being written, and which part of them is being worked on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attention import FULL, Attention
from .context import Rule, Window
from .rules import both, causal, leading, not_later, within

if TYPE_CHECKING:
    from .prediction import Prediction

NOWHERE = Window(0, 0)


@dataclass
class Canvas:
    """Rows need not be aligned: each has its own length and its own first blank, and nothing is padded on the left.

    Shapes: B rows, L positions (room for the longest row), W positions under the window.
    """

    tokens: Tensor  # (B, L) what is written so far
    given: Tensor  # (B, L) True where a token was given and must not change, and beyond a row's end
    mask_id: int
    lengths: Tensor  # (B,) the true length of each row; on the CPU
    seeds: Tensor  # (B,) what keys each row's random choices
    attention: Attention | None = None  # how the model is to look; None: as it was trained (the loop fills it in)
    end: int | None = None  # the token that ends a text (the loop fills it in from the model)
    shifted: bool = False  # does the network speak of a token one position before it? (likewise)
    block: Window = field(default=NOWHERE, init=False)  # the part to finish now
    window: Window = field(default=NOWHERE, init=False)  # the part the latest prediction covers
    number: int = field(default=0, init=False)  # of the block, from 1
    step: int = field(default=0, init=False)  # predictions made for this block
    budget: int = field(default=0, init=False)  # predictions allowed for this block
    forwards: int = field(default=0, init=False)  # model calls since the beginning
    latest: Prediction | None = field(default=None, init=False)  # what the last pass said, until the next is asked for

    def __post_init__(self):
        blank = ~self.given
        if self.mask_id < 0:
            raise ValueError("the model has no mask token, so it cannot fill blanks: adapt it first (unveil adapt)")
        if not bool(blank.any(1).all()):
            raise ValueError("every row needs at least one blank")
        self.first = blank.int().argmax(1).cpu()  # (B,) where each row's first blank is
        self.earlier = torch.zeros_like(self.seeds)  # (B,) blocks that were written before a row came to this canvas
        self.taken = torch.zeros_like(self.seeds)  # (B,) predictions a row had a use for; it waited through the others
        self.hidden = torch.zeros_like(self.given)  # (B, L) what a contrasting guide hides from its weaker look

    @classmethod
    def answering(
        cls,
        prompts: Tensor | Sequence[Tensor],
        length: int,
        mask_id: int,
        seeds: Tensor | None = None,
        attention: Attention | None = None,
    ) -> Canvas:
        """Prompts, (B, P) or one (P,) tensor a row, each followed by `length` blanks."""
        if length < 1:
            raise ValueError(f"length is {length}; expected at least one position to write")
        rows = list(prompts)
        if not rows:
            raise ValueError("no prompt was given; expected at least one row")
        blanks = rows[0].new_full((length,), mask_id)
        return cls.filling([torch.cat([row, blanks]) for row in rows], mask_id, seeds, attention)

    @classmethod
    def filling(
        cls,
        rows: Tensor | Sequence[Tensor],
        mask_id: int,
        seeds: Tensor | None = None,
        attention: Attention | None = None,
    ) -> Canvas:
        """Sequences whose blanks hold `mask_id`, (B, L) or one tensor a row: infilling, editing, constrained text."""
        rows = list(rows)
        device = rows[0].device
        lengths = torch.tensor([len(row) for row in rows])
        firsts = torch.tensor([int((row == mask_id).int().argmax()) for row in rows])
        # A window reaches as far beyond a row's first blank as the longest rest of any row.
        room = int(firsts.max() + (lengths - firsts).max())
        tokens = torch.zeros(len(rows), room, dtype=torch.long, device=device)
        given = torch.ones(len(rows), room, dtype=torch.bool, device=device)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = row
            given[index, : len(row)] = row != mask_id
        if seeds is None:
            seeds = torch.randint(2**31, (len(rows),))
        return cls(tokens, given, mask_id, lengths, seeds.to(device), attention)

    def close(self, rows: Tensor) -> None:
        """Write nothing more in `rows` (R,): whatever is still blank there stays so, and nothing is read of it."""
        self.given[rows] = True

    @property
    def look(self) -> Attention:
        """How the model looks."""
        return self.attention or FULL

    def blocks(self, size: int | None) -> Iterator[Window]:
        """Left to right, each row from its own first blank on; anchored to absolute positions for block attention."""
        if size is not None and size < 1:
            raise ValueError(f"block is {size}; expected at least one position")
        start = self.first
        if self.look.kind == "causal":
            if size not in (None, 1):
                raise ValueError(f"block is {size}; an autoregressive model writes in blocks of 1, token by token")
            size = 1
        if self.look.kind == "block":
            trained = self.look.block
            assert trained is not None
            size = size or trained
            if size % trained:
                raise ValueError(f"block is {size}; a model trained in blocks of {trained} decodes in its multiples")
            start = start - start % size
        rest = int((self.lengths - start).max())
        size = rest if size is None else size
        self.reserve(int(start.max()) + rest)
        for done in range(0, rest, size):
            yield Window.of(start + done, min(size, rest - done))

    def reserve(self, room: int) -> None:
        """Make room for `room` positions a row."""
        more = room - self.tokens.shape[1]
        if more > 0:
            self.tokens = torch.cat([self.tokens, self.tokens.new_zeros(len(self.tokens), more)], 1)
            self.given = torch.cat([self.given, self.given.new_ones(len(self.given), more)], 1)
            self.hidden = torch.cat([self.hidden, self.hidden.new_zeros(len(self.hidden), more)], 1)

    def enter(self, block: Window, steps: int | None) -> None:
        """Begin a block in which `steps` predictions are allowed (None: one for each position).

        A leader model has one more, for the leader: it comes with the pass that commits the block before.
        """
        self.block, self.number, self.step = block, self.number + 1, 0
        self.budget = block.width if steps is None else steps + int(self.look.leads)

    @property
    def leading(self) -> bool:
        """Is this the pass that reads what is committed and predicts the block's first token alone?"""
        return self.look.leads and self.step == 0

    @property
    def rule(self) -> Rule | None:
        """Who may look at whom in this pass."""
        match self.look.kind:
            case "full":
                return within(self.lengths) if bool((self.lengths != self.tokens.shape[1]).any()) else None
            case "block":
                size = self.look.block or self.block.width  # a row may end within one of these
                return self.existing(not_later(size), -(-(self.starts + self.block.width) // size) * size)
            case _ if self.leading:
                return causal
            case _:
                return self.existing(leading(self.block.starts, self.block.width), self.starts + self.block.width)

    def existing(self, rule: Rule, stop: Tensor) -> Rule | None:
        """The rule, less the positions before `stop` (B,) that lie beyond the end of a row."""
        if bool((stop > self.lengths).any()):
            return both(rule, within(self.lengths))
        return rule

    def reads(self, ahead: bool, revises: bool, lingers: bool = False) -> Tensor:
        """(N,) flat indices into (B, W) of the positions a decoder will look at.

        A row whose part of the block is finished waits for the others, and nothing is read of it, unless the decoder
        `lingers` there: what a row is told does not depend on its company.
        """
        if ahead:
            wanted = ~self.window.take(self.given) if revises else self.blank
        else:
            wanted = self.free if revises else self.open
        if (ahead or revises) and not lingers:
            wanted = wanted & self.open.any(1, keepdim=True)
        if self.leading:
            here = self.window.positions(self.tokens.device)
            wanted = wanted & (here == self.starts.to(here.device)[:, None])
        return wanted.flatten().nonzero()[:, 0]

    def write(self, tokens: Tensor) -> None:
        """New (B, W) tokens under the window."""
        self.window.put(self.tokens, tokens)

    @property
    def starts(self) -> Tensor:
        """(B,) where the current block begins in each row."""
        starts = self.block.starts
        return torch.full_like(self.lengths, starts) if isinstance(starts, int) else starts

    @property
    def patience(self) -> Tensor:
        """(B, 1) predictions of several positions that each row can use in this block: no more than it has there."""
        leader = int(self.look.leads)  # takes a prediction, and a position, of its own
        rest = (self.lengths - self.starts).clamp(max=self.block.width) - leader
        return rest.clamp(max=self.budget - leader).clamp(min=1).to(self.tokens.device)[:, None]

    @property
    def seen(self) -> Tensor:
        """(B, W) the tokens under the window."""
        return self.window.take(self.tokens)

    @property
    def blank(self) -> Tensor:
        """(B, W) what is still to be written, in this block or beyond."""
        return (self.seen == self.mask_id) & ~self.window.take(self.given)

    @property
    def free(self) -> Tensor:
        """(B, W) positions of the current block that were not given."""
        if self.window is self.block:
            return ~self.window.take(self.given)
        here = self.window.positions(self.tokens.device)
        start = self.starts.to(here.device)[:, None]
        return ~self.window.take(self.given) & (here >= start) & (here < start + self.block.width)

    @property
    def open(self) -> Tensor:
        """(B, W) blanks of the current block."""
        return self.free & (self.seen == self.mask_id)

    @property
    def finished(self) -> bool:
        """Is the current block?"""
        inside = self.block.take(self.tokens) == self.mask_id
        return not bool((inside & ~self.block.take(self.given)).any())

    def rows(self) -> list[Tensor]:
        """The sequences at their true lengths."""
        return [row[:n] for row, n in zip(self.tokens, self.lengths.tolist(), strict=True)]
