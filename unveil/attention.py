"""The three kinds of attention a checkpoint can have, and the rule each implies while a block is being written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["full", "block", "leader", "causal"]


@dataclass(frozen=True)
class Attention:
    """A property of the checkpoint, saved in its config.

    full    every position sees every other (LLaDA, Dream, DiffuGPT): every cache is approximate
    block   a position sees its own block and earlier ones (BD3-LM, SDAR): finished blocks are kept exactly;
            blocks are anchored to absolute positions
    leader  committed tokens are read token by token, left to right; the open block is bidirectional and its
            first token, the leader, is an ordinary next-token prediction: caching and the autoregressive mode are exact
    causal  an autoregressive parent that has not been adapted
    """

    kind: Kind = "full"
    block: int | None = None  # the block length it was trained with, in tokens

    def __post_init__(self):
        if self.kind not in ("full", "block", "leader", "causal"):
            raise ValueError(f"attention kind {self.kind!r}; there are: full, block, leader, causal")
        if self.kind == "block" and not self.block:
            raise ValueError("block attention needs its block length")

    @property
    def exact(self) -> bool:
        """Can keys and values of finished blocks be kept without changing any number?"""
        return self.kind != "full"

    @property
    def cache(self) -> str:
        """The cache to decode with where none is chosen: the fastest that changes nothing."""
        return "causal" if self.exact else "recompute"

    @property
    def leads(self) -> bool:
        """Is the first token of a block predicted by the causal pass over what is committed?"""
        return self.kind in ("leader", "causal")


FULL = Attention()
