"""What a bench tells a user: which way to decode, or that nothing is faster, or that the sample is too small."""

from __future__ import annotations

from dataclasses import dataclass

from .bench import Bench, Measured
from .intervals import Interval

TOLERANCE = 0.01  # of the mean score: a loss that counts as none
DOUBT = 0.05  # a loss that has to be excluded before quality is called the same
FASTER = 1.05  # times as fast: less is within what timing itself varies


@dataclass(frozen=True)
class Advice:
    """One or two sentences, and what they are about."""

    sentence: str
    best: Measured | None = None


def advice(bench: Bench) -> Advice:
    """The fastest way whose quality is not worse than vanilla's.

    Not worse: at most one point below it, or the interval of the paired difference includes 0.
    """
    vanilla, n = bench.vanilla, bench.sample
    if not vanilla.scores.any():
        return Advice(
            f"Vanilla solves none of {n} problems, so no decoder can be told from another here: "
            "train the model further, or ask an easier task."
        )
    held = [one for one in bench.measured[1:] if one.arm.role != "autoregressive" and alike(bench.difference(one))]
    best = max(held, key=lambda one: one.speed, default=None)
    if best is None:
        return Advice(f"Nothing measured keeps the quality of vanilla. {beside(bench, vanilla)}".strip())
    if bench.gain(best) < FASTER:
        told = f"Nothing that keeps the quality of vanilla is faster: {best.name} runs at {bench.gain(best):.2f}x."
        return Advice(f"{told} {beside(bench, vanilla)}".strip(), vanilla)
    found = bench.difference(best)
    gain = f"{bench.gain(best):.1f}x faster: {best.name}"
    if found.low > 0:
        told = f"Better quality ({found.mean * 100:+.1f} points), {gain}."
    elif found.low >= -TOLERANCE:
        told = f"Same quality, {gain}."
    elif found.low >= -DOUBT:
        told = f"Same quality as far as {n} problems can tell ({points(found)}), {gain}."
    else:
        told = (
            f"The sample is too small to tell: with {n} problems a loss of {-found.low * 100:.0f} points is not "
            f"excluded. Fastest of what is not shown to be worse, {gain} ({points(found)}). Raise --count or --seeds."
        )
    return Advice(f"{told} {beside(bench, best)}".strip(), best)


def alike(found: Interval) -> bool:
    """Is a paired difference to vanilla no loss?"""
    return found.mean >= -TOLERANCE or found.high >= 0


def points(found: Interval) -> str:
    """A difference of mean scores, in points of 100."""
    return f"{found.mean * 100:+.1f} points, 95 % interval {found.low * 100:+.1f} to {found.high * 100:+.1f}"


def beside(bench: Bench, one: Measured) -> str:
    """How autoregressive decoding compares, where it was measured."""
    other = bench.autoregressive
    if other is None:
        return ""
    level = f"at {100 * one.scores.mean():.1f} % right to its {100 * other.scores.mean():.1f} %"
    return f"That is {one.speed / other.speed:.2g}x as fast as autoregressive decoding with a KV cache, {level}."
