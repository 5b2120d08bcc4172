"""Decide when a text may end: never, only from the left, or from the left and then at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..canvas import Canvas
from ..context import Asking, Context
from ..prediction import CHUNK
from . import Ahead, Guide, places

POLICIES = ("never", "hold", "stop")
SHARED = 32  # tokens among which the probability of an end that comes too early is shared out


@dataclass
class Eos(Guide):
    """Full-attention models see far blanks as the end of the text long before its middle is written.

    never  no token is the end (`logits_eos_inf` of LLaDA's own evaluation)
    hold   a position may become the end when everything to its left in its row is written, or when an end was written
           to its left in the same gap: ends are decided from left to right
    stop   hold, and once such an end has everything to its left written, the gap is filled with ends without a pass

    A gap is what lies between two given tokens. An end that stands may stay, whatever is taken back before it.

    Where the end comes too early, its probability is shared out among the likeliest other tokens, in their order. So
    the position looks as undecided as it is, and waits; without the end alone, its second choice would look certain.
    """

    policy: str = "hold"

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise ValueError(f"no end-of-text policy called {self.policy!r}; there are: {', '.join(POLICIES)}")

    def begin(self, canvas: Canvas) -> None:
        if canvas.end is None:
            raise ValueError("the eos guide needs to know which token ends a text, and the model names none")

    def ask(self, canvas: Canvas, context: Context, ahead: Ahead) -> Asking:
        logits = yield from ahead(canvas, context)
        assert canvas.end is not None
        if self.policy == "never":
            logits[:, canvas.end] = -torch.inf
            return logits
        row, place = places(canvas, context)
        barred = (self.early(canvas) & (canvas.tokens != canvas.end))[row, place].nonzero()[:, 0]
        for some in barred.split(max(1, CHUNK // logits.shape[1])):
            logits[some] = shared_out(logits[some], canvas.end, canvas.mask_id)
        return logits

    def settle(self, canvas: Canvas) -> None:
        if self.policy == "stop":
            assert canvas.end is not None
            blank = blanks(canvas)
            ends = (canvas.tokens == canvas.end) & (blank.cumsum(1) == 0)
            canvas.tokens.masked_fill_(blank & ended(canvas, ends), canvas.end)

    def early(self, canvas: Canvas) -> Tensor:
        """(B, L) True where it is too early for the end."""
        blank = blanks(canvas)
        return (blank.cumsum(1) > blank.long()) & ~ended(canvas, canvas.tokens == canvas.end)


def shared_out(logits: Tensor, end: int, mask_id: int) -> Tensor:
    """Logits (n, V) without the end, whose probability goes to the likeliest tokens: to the k-th of n, n - k + 1 parts.

    No token gains more than 2 / (n + 1) of it, so nothing looks surer than it did by more than that.
    """
    level = logits[:, [end]].float()
    logits[:, [end, mask_id]] = -torch.inf
    best = logits.topk(min(SHARED, logits.shape[1]), dim=-1)
    count, values = best.values.shape[1], best.values.float()
    parts = torch.arange(count, 0, -1, device=logits.device) * (2 / (count * (count + 1)))
    more = torch.logaddexp(values, level + parts.log()).masked_fill(values == -torch.inf, -torch.inf)
    return logits.scatter(1, best.indices, more.to(logits.dtype))


def blanks(canvas: Canvas) -> Tensor:
    """(B, L) what is still to be written."""
    return (canvas.tokens == canvas.mask_id) & ~canvas.given


def ended(canvas: Canvas, ends: Tensor) -> Tensor:
    """(B, L) True at and behind one of the `ends` (B, L) that were written in the same gap."""
    here = torch.arange(ends.shape[1], device=ends.device)

    def latest(where: Tensor) -> Tensor:
        return torch.where(where, here, -1).cummax(1).values

    return latest(ends & ~canvas.given) > latest(canvas.given)
