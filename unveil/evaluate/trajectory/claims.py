"""What was published, beside what was measured: an effect with its interval, and whether the claim holds here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..intervals import Interval


@dataclass(frozen=True)
class Claim:
    """A published finding, and one number that is above zero if it holds."""

    name: str
    published: str  # what the publication says, in our words
    effect: Interval  # above 0 speaks for it
    what: str  # of what the effect is the size
    note: str = ""

    @property
    def verdict(self) -> str:
        """By the 95 % interval."""
        if not math.isfinite(self.effect.low):
            return "not measured"
        if self.effect.low > 0:
            return "holds"
        return "reversed" if self.effect.high < 0 else "not shown"

    @property
    def sentence(self) -> str:
        """For people."""
        low, mean, high = (short(x) for x in (self.effect.low, self.effect.mean, self.effect.high))
        after = f"; {self.note}" if self.note else ""
        found = "" if self.verdict == "not measured" else f": {self.what} {mean} (95 % {low} to {high})"
        return f"{self.name}: {self.verdict}{found}{after}"

    def plain(self) -> dict[str, object]:
        """For machines."""
        return {
            "claim": self.name,
            "published": self.published,
            "verdict": self.verdict,
            "what": self.what,
            "effect": told(self.effect),
            "note": self.note,
        }


def short(value: float) -> str:
    """With its sign, to three digits."""
    return f"{value:+.3g}"


def told(found: Interval) -> dict[str, float]:
    """An interval for machines."""
    return {"mean": found.mean, "low": float(found.low), "high": float(found.high)}
