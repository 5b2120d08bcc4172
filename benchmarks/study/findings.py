"""From the texts of all ways to decode to what they say of the published claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unveil.evaluate.texts.compare import Described, short
from unveil.evaluate.texts.resampling import Difference, Estimate, difference

from .variants import AR, FIRST, name

ENTROPIES = ("entropy_1", "entropy_2", "entropy_3")
SIGNS = {1: "higher", -1: "lower", 0: "no difference seen"}
Sets = Mapping[str, Described]


@dataclass(frozen=True)
class Finding:
    """A published claim, and the differences that it speaks of."""

    claim: str
    wanted: int  # the sign that every difference should have; 0: none that can be seen
    differences: Mapping[str, Difference]

    @property
    def verdict(self) -> str:
        right = sum(each.sign == self.wanted for each in self.differences.values())
        wrong = sum(each.sign == -self.wanted for each in self.differences.values()) if self.wanted else 0
        if right == len(self.differences):
            return "holds"
        against = f", {wrong} of them reversed" if wrong else ""
        return f"{'holds in part' if right else 'does not hold'}: {right} of {len(self.differences)}{against}"

    @property
    def told(self) -> str:
        return "; ".join(f"{name} {each.told}" for name, each in self.differences.items())


def between(sets: Sets, one: str, other: str, figures: Sequence[str]) -> dict[str, Difference]:
    """Of two ways to decode; the texts go on from the same prompts, so they are paired."""
    a, b = sets[one].figures, sets[other].figures
    return {short(each): difference(a[each], b[each], paired=True) for each in figures if each in a and each in b}


def gap(sets: Sets, block: int, decoder: str, figure: str) -> Estimate:
    """What a decoder loses against a random order in blocks of the same length."""
    return sets[name(block, decoder)].figures[figure].less(sets[name(block, "rr")].figures[figure])


def findings(sets: Sets, blocks: Sequence[int]) -> list[Finding]:
    """Each claim of arXiv 2605.12522 that the texts can speak to, entropies at equal numbers of tokens."""
    found = []

    def entropies(claim: str, wanted: int, pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> None:
        every = {
            f"{label} {key}": each
            for (one, other), label in zip(pairs, labels, strict=True)
            for key, each in between(sets, one, other, ENTROPIES).items()
        }
        found.append(Finding(claim, wanted, every))

    labels = [f"block {block}" for block in blocks]
    for decoder in ("lcr", "dlcr"):
        pairs = [(name(block, decoder), name(block, "rr")) for block in blocks]
        entropies(f"{decoder} lowers n-gram entropy against rr", -1, pairs, labels)
    steps = {
        f"blocks {small} to {large} {short(each)}": difference(
            gap(sets, large, "lcr", each), gap(sets, small, "lcr", each), paired=True
        )
        for small, large in pairwise(blocks)
        for each in ENTROPIES
    }
    if steps:
        found.append(Finding("the loss by lcr grows with the block length", -1, steps))
    for decoder in ("er", "lcr, resampled", "dlcr, resampled"):
        pairs = [(name(block, decoder), name(block, "rr")) for block in blocks]
        entropies(f"{decoder}: as rr", 0, pairs, labels)
    entropies("block 1: as rr", 0, [(FIRST, name(block, "rr")) for block in blocks], labels)
    entropies("the objective hardly moves entropy: masked, token by token, less AR", 0, [(FIRST, AR)], ["block 1"])
    usual = name(blocks[-1], "lcr")
    entropies("a masked model as usually decoded has lower n-gram entropy than AR", -1, [(usual, AR)], [usual])
    for kind in ("coherence", "diversity"):
        figures = [each for each in sets[AR].figures if each.startswith(f"{kind}/")]
        objective = between(sets, FIRST, AR, figures)
        found.append(Finding(f"the objective raises semantic {kind}: masked, token by token, less AR", 1, objective))
        decoded = between(sets, usual, AR, figures)
        found.append(Finding(f"a masked model as usually decoded has higher semantic {kind} than AR", 1, decoded))
    return found
