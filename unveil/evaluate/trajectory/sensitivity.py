"""How much accuracy a perturbation costs, by step and budget rule, directly and collaterally.

Shapes: P positions, T perturbed steps, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..intervals import Interval
from .claims import Claim, told
from .perturbation import RULES, Perturbation
from .resample import Resample, band, interval

LEAST = 20  # sequences: most lose nothing, and of fewer a bootstrap sees too little of how they vary


def sensitivity(
    many: Mapping[str, Perturbation], sequence: NDArray[np.integer], total: int
) -> tuple[dict[str, Any], list[Claim]]:
    """Figures by budget rule, and the claims that they answer; `sequence` (P,), `total` steps of the undisturbed run.

    drop = (1/|M|) (sum over what was masked again + sum over the rest) of (right before - right after): the first is
    the direct part, the second the collateral one (card of arXiv 2604.23235, 5.3).
    """
    resample = Resample(sequence)
    found, claims = {}, []
    for rule, each in many.items():
        ones = np.ones(each.hit.shape)
        direct = resample.ratio(each.lost * each.hit, ones)
        collateral = resample.ratio(each.lost * ~each.hit, ones)
        moved = [resample.ratio(each.changed & part, ones) for part in (each.hit, ~each.hit)]
        drop = direct + collateral
        found[rule] = {
            "rule": RULES[rule],
            "steps": each.steps.tolist(),
            "drop": [told(one) for one in band(drop)],
            "direct": [told(one) for one in band(direct)],
            "collateral": [told(one) for one in band(collateral)],
            "changed_directly": [told(one) for one in band(moved[0])],
            "changed_collaterally": [told(one) for one in band(moved[1])],
            "peak": told(interval(each.steps[drop.argmax(1)].astype(float))),
        }
        claims += answers(rule, each.steps, drop, direct, collateral, total)
    few = len(resample.names)
    if few < LEAST:
        claims = [replace(claim, effect=Interval(claim.effect.mean, math.nan, math.nan)) for claim in claims]
        claims = [replace(claim, note=f"{few} sequences are too few for an interval") for claim in claims]
    return found, claims


def answers(
    rule: str, steps: NDArray[np.integer], drop: NDArray, direct: NDArray, collateral: NDArray, total: int
) -> list[Claim]:
    """The middle costs more than either end; and what is lost is lost directly."""
    middle = (steps >= 3 / 8 * total) & (steps <= 5 / 8 * total)
    ends = (steps <= total / 4), (steps >= 3 / 4 * total)
    found = []
    if middle.any() and all(end.any() for end in ends):
        rest = np.maximum(*(drop[:, end].mean(1) for end in ends))
        found.append(
            Claim(
                f"the middle is most sensitive (rule {rule})",
                "accuracy drops most when steps 15 to 18 of 32 are perturbed",
                interval(drop[:, middle].mean(1) - rest),
                "drop of accuracy in the middle less that at the worse end",
                f"largest drop at step {steps[drop[0].argmax()]}",
            )
        )
    worst = int(drop[0].argmax())
    shares = direct[0, worst], collateral[0, worst]
    found.append(
        Claim(
            f"the damage is direct (rule {rule})",
            "10.92 of 10.96 points are lost at the positions masked again, 0.03 elsewhere",
            interval(direct[:, worst] - np.abs(collateral[:, worst])),
            f"direct less collateral drop at step {steps[worst]}",
            f"{100 * shares[0]:.2f} points directly, {100 * shares[1]:.2f} elsewhere",
        )
    )
    return found
