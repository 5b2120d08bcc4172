"""Keys and values of finished prefixes, kept for rows that begin alike, and the passes that compute what is missing."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from .. import rules
from ..attention import Attention
from ..context import Ask, Context, Store, Window
from .cohort import Member

Pieces = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values (G, n, D) of each layer."""
GIVE = 16  # one part in so many is given up beyond what is needed, so that not every request has to look for room


@dataclass(eq=False)
class Node:
    """A stretch of tokens that follows its parent's; what follows it differs from the first `grain` tokens on."""

    tokens: Sequence[int]
    pieces: Pieces
    parent: Node | None
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    used: int = 0  # when it was last needed; larger is later

    def cut(self, start: int, stop: int | None = None) -> Pieces:
        """A part of the pieces, in memory of its own."""
        return {layer: (k[:, start:stop].clone(), v[:, start:stop].clone()) for layer, (k, v) in self.pieces.items()}


class Prefixes:
    """A tree: rows with a common beginning keep it once. What was not needed for longest is given up first.

    `grain` is how many tokens stand or fall together: one where text is read token by token, a block where the tokens
    of a block see each other.
    """

    def __init__(self, grain: int, position: int):
        """`position` is the bytes that one position takes."""
        self.grain, self.position = grain, position
        self.root = Node((), {}, None)
        self.bytes = 0
        self.clock = count(1)

    def path(self, tokens: Sequence[int]) -> Iterator[tuple[Node, int]]:
        """The nodes that `tokens` go through, each with how many of its tokens agree: all but in the last."""
        node, at = self.root, 0
        while child := node.children.get(tuple(tokens[at : at + self.grain])):
            here, there = child.tokens, tokens[at : at + len(child.tokens)]
            differ = (index for index, pair in enumerate(zip(here, there, strict=False)) if pair[0] != pair[1])
            same = next(differ, len(there)) // self.grain * self.grain
            yield child, same
            if same < len(here):
                return
            node, at = child, at + same

    def begin(self, tokens: Sequence[int], capacity: int) -> tuple[Store, int]:
        """A store of one row with what is kept of a prefix of `tokens`, and how many positions that is."""
        store, at, now = Store(capacity), 0, next(self.clock)
        for node, same in self.path(tokens):
            node.used = now
            for layer, pair in node.pieces.items():
                if layer not in store.kept:
                    size = 1, pair[0].shape[0], capacity, pair[0].shape[2]
                    store.kept[layer] = pair[0].new_zeros(size), pair[1].new_zeros(size)
                for mine, theirs in zip(store.kept[layer], pair, strict=True):
                    mine[0, :, at : at + same] = theirs[:, :same]
            at += same
        store.length = at
        return store, at

    def keep(self, tokens: Sequence[int], store: Store, row: int) -> None:
        """Keep the keys and values of `tokens`, the beginning of `row` of the store's buffers."""
        node, at, now = self.root, 0, next(self.clock)
        for child, same in list(self.path(tokens)):
            child.used = now
            if same < len(child.tokens):
                child = self.split(child, same)
            node, at = child, at + same
        stop = len(tokens) // self.grain * self.grain
        if at >= stop:
            return
        kept = {layer: (k[row, :, at:stop].clone(), v[row, :, at:stop].clone()) for layer, (k, v) in store.kept.items()}
        node.children[tuple(tokens[at : at + self.grain])] = Node(tuple(tokens[at:stop]), kept, node, used=now)
        self.bytes += (stop - at) * self.position

    def split(self, node: Node, at: int) -> Node:
        """Cut a node in two; the first part."""
        assert node.parent is not None
        upper = Node(node.tokens[:at], node.cut(0, at), node.parent, used=node.used)
        node.parent.children[tuple(node.tokens[: self.grain])] = upper
        node.pieces, node.tokens, node.parent = node.cut(at), node.tokens[at:], upper
        upper.children[tuple(node.tokens[: self.grain])] = node
        return upper

    def shrink(self, most: int) -> None:
        """Give up what was not needed for longest until at most `most` bytes are kept."""
        if self.bytes <= most:
            return
        goal, nodes = most - most // GIVE, [self.root]
        for node in nodes:
            nodes += node.children.values()
        leaves = [(node.used, number, node) for number, node in enumerate(nodes) if not node.children]
        heapq.heapify(leaves)
        while leaves and self.bytes > goal:
            _, number, node = heapq.heappop(leaves)
            if node.parent is None:
                return
            del node.parent.children[tuple(node.tokens[: self.grain])]
            self.bytes -= len(node.tokens) * self.position
            if not node.parent.children:
                heapq.heappush(leaves, (node.parent.used, number, node.parent))


class Prefill:
    """Computes what of a prompt can be kept for good, some positions a pass. Rows with one prompt share it.

    Nothing is read of its passes. What is left of the prompt is computed with the first prediction.
    """

    def __init__(self, member: Member, attention: Attention, store: Store, known: int, stop: int):
        """The positions from `known` to `stop` of the member's row; `store` holds those before."""
        self.members = [member]
        self.prompt = member.tokens[:stop]
        self.tokens = torch.tensor([self.prompt])
        self.attention, self.store, self.at, self.stop = attention, store, known, stop
        self.asked: Ask | None = None

    @property
    def bytes(self) -> int:
        """Set aside for the rows that wait."""
        return sum(member.bytes for member in self.members)

    def plan(self, most: int, device: torch.device) -> None:
        """Ask for the next pass, over about `most` positions: whole blocks where these see each other."""
        block = self.attention.block or 1
        grain = block if self.attention.kind == "block" else 1
        rule = rules.causal if self.attention.leads else rules.not_later(block)
        size = min(max(most // grain, 1) * grain, self.stop - self.at)
        read = torch.zeros(0, dtype=torch.long, device=device)
        context = Context(Window(self.at, size), rule, store=self.store, read=read, exact=True)
        self.asked = Ask(self.tokens.to(device), context)

    def hear(self) -> bool:
        """The pass was made; True when it was the last."""
        assert self.asked is not None
        assert self.asked.context.window is not None
        self.at += self.asked.context.window.width
        for member in self.members:
            member.forwards += 1
        return self.at >= self.stop


def settled(member: Member, attention: Attention) -> int:
    """How many positions of a row's prompt can be kept before anything is predicted: at least one is left to compute.

    Leader models read all of the prompt's tokens one after the other, and the last of them predicts. Block models keep
    whole blocks, and the one with the first blank is still to be written.
    """
    if attention.leads:
        return max(member.first - 1, 0)
    size = member.request.options.block or 1
    return member.first - member.first % size
