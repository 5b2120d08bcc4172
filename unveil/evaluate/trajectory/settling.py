"""When what settles: commitment by class of word, and what early commitment is worth.

Shapes: P positions, S steps, D draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .claims import Claim, told
from .commitment import changes, commitment, share
from .labels import Labels
from .recording import Recording
from .resample import Resample, interval

LEAST = 20  # positions of a class that are needed to speak of it
EARLY = 1 / 8  # of the steps


def settling(recording: Recording, labels: Labels, resample: Resample) -> tuple[dict[str, Any], list[Claim]]:
    """The figures, and the claims that they answer."""
    moment, steps = commitment(recording.predicted), recording.steps
    right = recording.right[:, -1]
    coarse = labels.above[recording.kind]
    means = {i: resample.mean(moment, coarse == i) for i in range(len(labels.coarse))}
    early = moment < max(round(EARLY * steps), 1)
    errors = resample.mean(~right, early)
    shares = [share(values, steps).tolist() for values in (moment, recording.revealed)]
    found = {
        "mean": told(interval(resample.mean(moment))),
        "median": float(np.median(moment)),
        "changes": float(changes(recording.predicted).mean()),
        "committed_by_step": shares[0],
        "revealed_by_step": shares[1],
        "by_class": by(labels.fine, recording.kind, moment, recording, resample),
        "by_coarse_class": by(labels.coarse, coarse, moment, recording, resample),
        "early": {
            "before_step": int(max(round(EARLY * steps), 1)),
            "share": float(early.mean()),
            "wrong": told(interval(errors)),
            "wrong_later": told(interval(resample.mean(~right, ~early))),
        },
    }
    return found, claims(labels, coarse, means, errors)


def by(
    names: list[str], kind: NDArray[np.integer], moment: NDArray, recording: Recording, resample: Resample
) -> dict[str, dict[str, Any]]:
    """Commitment, reveal and accuracy of each class that has enough positions."""
    found = {}
    for i, name in enumerate(names):
        mine = kind == i
        if mine.sum() < LEAST:
            continue
        found[name] = {
            "positions": int(mine.sum()),
            "commitment": told(interval(resample.mean(moment, mine))),
            "median": float(np.median(moment[mine])),
            "revealed": told(interval(resample.mean(recording.revealed, mine))),
            "right": told(interval(resample.mean(recording.right[:, -1], mine))),
        }
    return found


def claims(labels: Labels, coarse: NDArray, means: dict[int, NDArray], errors: NDArray) -> list[Claim]:
    """Content before function words, numbers before them, and early commitment that is wrong."""
    place = {name: i for i, name in enumerate(labels.coarse)}
    found = []
    for name in [each for each in (labels.early, "number") if each in place]:
        pair = place[name], place[labels.late]
        if min((coarse == each).sum() for each in pair) >= LEAST:
            later = interval(means[pair[1]] - means[pair[0]])
            found.append(
                Claim(
                    f"{name} settles before {labels.late}",
                    "content words and numbers stabilise earlier than function words",
                    later,
                    f"steps by which {labels.late} commits later",
                )
            )
    found.append(
        Claim(
            "early commitment is no guarantee",
            "tokens that commit early may still be wrong",
            interval(errors),
            "share of wrong tokens among those committed in the first eighth of the steps",
        )
    )
    return found
