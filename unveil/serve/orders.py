"""What was asked for, checked before it waits for its turn: a request that cannot run is refused at once."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from .. import spec
from ..attention import FULL
from ..caches import Cache
from ..caches.causal import Causal
from ..codecs.text import Text
from ..decoders import Decoder
from ..denoiser import Denoiser
from ..guides import Guide
from .cohort import Cohort, Member, Options, Request
from .constraint import Constrained
from .memory import Network, demand
from .messages import Submit

PROVEN = 256  # combinations of options remembered as legal


@dataclass(frozen=True)
class Proof:
    """Options that go together, for rows up to a length."""

    decoder: Decoder
    cache: Cache
    guides: Sequence[Guide]
    longest: int


class Orders:
    def __init__(self, model: Denoiser, network: Network, memory: int, text: Text | None):
        """`memory` is bytes for keys, values and logits of all requests together."""
        self.model, self.network, self.memory, self.text = model, network, memory, text
        self.proofs: OrderedDict[tuple, Proof] = OrderedDict()

    def decoder(self, request: Request) -> Decoder:
        decoder: Decoder = spec.build("decoders", request.options.decoder)
        if request.order.schema is None:
            return decoder
        if self.text is None:
            raise ValueError("a JSON schema needs the model's tokenizer, and this engine was started without one")
        return Constrained(decoder, self.text, request.order.schema)

    def request(self, order: Submit) -> Request:
        """The request as it will run. ValueError, in the words of what would refuse it, when it cannot."""
        if not order.rows:
            raise ValueError("the request has no row; expected at least one")
        if not 0 <= (order.top or 0) <= self.network.vocab:
            raise ValueError(f"top is {order.top}; expected 0 to {self.network.vocab} likeliest tokens")
        attention = FULL if order.full else self.model.attention
        options = Options(
            decoder=order.decoder,
            cache=order.cache or attention.cache,
            block=attention.block if order.block is None else order.block,
            steps=order.steps,
            guide=order.guide,
            full=order.full,
            alone="" if order.schema is None else order.id,
        )
        request = Request(order, options, time.perf_counter())
        request.members = [self.member(request, number) for number in range(len(order.rows))]
        for member in sorted(request.members, key=lambda member: -len(member.tokens)):
            proof = self.proven(member)
            member.reuses = isinstance(proof.cache, Causal) and not proof.cache.sub
            member.moves = moves(member, proof)
            sizes = len(member.tokens), len(member.tokens) - member.first, member.blanks
            member.bytes = demand(self.network, proof.decoder, proof.cache, proof.guides, *sizes, options.block)
        wanted = sum(member.bytes for member in request.members)
        if wanted > self.memory:
            raise ValueError(
                f"the request may take {wanted:,} bytes for keys, values and logits, and the server has "
                f"{self.memory:,} for all: ask for fewer or shorter rows"
            )
        return request

    def proven(self, member: Member) -> Proof:
        """What a row's options are made of. ValueError when they do not go together, or not with the row."""
        found = self.proofs.get(member.key)
        if found is None or found.longest < len(member.tokens):
            cohort = Cohort(self.model, [member], self.decoder(member.request))
            cohort.proceed()  # whatever does not go together says so before its first pass
            guides = [each for guide in cohort.guides for each in guide.chain()]
            found = Proof(cohort.decoder, cohort.cache, guides, len(member.tokens))
        if not member.request.options.alone:
            self.proofs[member.key] = found
            self.proofs.move_to_end(member.key)
            while len(self.proofs) > PROVEN:
                self.proofs.popitem(last=False)
        return found

    def member(self, request: Request, number: int) -> Member:
        """One row. ValueError when it is no sequence with blanks."""
        row, vocab, mask = request.order.rows[number], self.network.vocab, self.model.mask_id
        wrong = [token for token in row.tokens if not 0 <= token < vocab]
        if wrong:
            raise ValueError(f"{wrong[0]} is no token of this model; expected 0 to {vocab - 1}")
        if not 0 <= row.seed < 1 << 63:
            raise ValueError(f"the seed is {row.seed}; expected 0 to {(1 << 63) - 1}")
        if mask not in row.tokens:
            raise ValueError(f"a row has nothing to write; expected at least one blank, which is the token {mask}")
        first = row.tokens.index(mask)
        if first == 0 and (self.model.shifted or self.model.attention.leads):
            raise ValueError("a row begins with a blank, and this model needs a token to follow: give it one")
        return Member(request, number, row.tokens, row.seed, first, row.tokens.count(mask))


def moves(member: Member, proof: Proof) -> bool:
    """May the row go on on another canvas whenever a block is finished?

    Where finished blocks are kept exactly, what is written stands at the end of the text, and nothing is remembered
    from block to block.
    """
    plain = isinstance(proof.cache, Causal) and not proof.cache.sub and not proof.guides
    writes_on = member.blanks == len(member.tokens) - member.first
    return plain and writes_on and member.request.options.block is not None and forgets(proof.decoder)


def forgets(decoder: Decoder) -> bool:
    """Does it begin each block as if it were the first?"""
    kind = type(decoder)
    plain = kind.begin is Decoder.begin and kind.done is Decoder.done and kind.rests is Decoder.rests
    return plain and not (decoder.takes_back or decoder.lingers or decoder.ahead or decoder.reaches or decoder.afresh)
