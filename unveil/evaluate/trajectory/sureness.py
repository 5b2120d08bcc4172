"""Uncertainty against correctness along a trajectory: entropy of what ends right and wrong, and calibration by step.

Shapes: P positions, S steps, D draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .claims import Claim, told
from .recording import Recording
from .resample import Resample, band, interval
from .uncertainty import BINS, auroc, binned, brier, curve, ece

BAND = 200  # draws for what is asked at every step


def sureness(recording: Recording, resample: Resample) -> tuple[dict[str, Any], list[Claim]]:
    """The figures, and the claims that they answer.

    A position that is revealed has two confidences: that at which it was revealed (`kept`), and what the model gives
    the token when it reads it again (`reread`), which training never asked of it. Correct is either the prediction of
    that step or the last one.
    """
    final = recording.right[:, -1]
    readings = {
        "kept": (recording.kept(recording.probability), recording.kept(recording.entropy)),
        "reread": (recording.probability, recording.entropy),
    }
    calibration, gaps = {}, {}
    for name, (confidence, _) in readings.items():
        for when, correct in (("step", recording.right), ("final", np.broadcast_to(final[:, None], confidence.shape))):
            drawn = errors(confidence, correct, resample)
            calibration[f"{name}, {when}"] = {
                "ece": [told(each) for each in band(drawn)],
                "brier": [told(each) for each in band(resample.mean(brier(confidence, correct)))],
                "first": curve(binned(confidence[:, 0], correct[:, 0]).sum(0)),
                "last": curve(binned(confidence[:, -1], correct[:, -1]).sum(0)),
            }
            if when == "step":
                gaps[name] = drawn[:, -1] - drawn[:, 0]
    separation, worst, apart = {}, {}, {}
    for name, (_, entropy) in readings.items():
        difference = resample.mean(entropy, ~final) - resample.mean(entropy, final)
        apart[name] = difference.min(1)  # the smallest over the steps, in each draw
        by_step, lowest = separated(entropy, final, resample)
        worst[name] = lowest
        separation[name] = {
            "entropy_right": entropy[final].mean(0).tolist() if final.any() else [],
            "entropy_wrong": entropy[~final].mean(0).tolist() if (~final).any() else [],
            "auroc_by_step": by_step,
            "auroc_of_mean": told(interval(ranked(entropy.mean(1), final, resample))),
        }
    found = {
        "bins": BINS,
        "calibration": calibration,
        "separation": separation,
        "wrong_in_the_end": float((~final).mean()),
    }
    return found, claims(apart["kept"], worst["kept"], gaps)


def errors(confidence: NDArray, correct: NDArray[np.bool_], resample: Resample) -> NDArray[np.float64]:
    """(1 + D, S) expected calibration errors."""
    columns = range(confidence.shape[1])
    return np.stack([ece(resample.drawn(binned(confidence[:, s], correct[:, s]))) for s in columns], 1)


def ranked(score: NDArray, final: NDArray[np.bool_], resample: Resample, draws: int = BAND) -> NDArray[np.float64]:
    """(1 + draws,) how well a score (P,) tells what ends wrong."""
    where = np.searchsorted(resample.names, resample.sequence)
    weights = np.concatenate([np.ones((1, len(score))), resample.times[:draws, where]])
    return auroc(score, ~final, weights)


def separated(
    entropy: NDArray, final: NDArray[np.bool_], resample: Resample
) -> tuple[list[dict[str, float]], NDArray[np.float64]]:
    """Intervals by step, and (1 + draws,) the lowest over the steps."""
    drawn = np.stack([ranked(entropy[:, s], final, resample) for s in range(entropy.shape[1])], 1)
    return [told(each) for each in band(drawn)], drawn.min(1)


def claims(apart: NDArray, worst: NDArray, gaps: dict[str, NDArray]) -> list[Claim]:
    """Errors keep a higher entropy, which separates them; and confidence becomes less calibrated."""
    published = "tokens that end wrong keep a higher entropy throughout"
    least = "smallest difference of mean entropy, wrong less right, over the steps, nats"
    found = [
        Claim("errors keep higher entropy", published, interval(apart), least),
        Claim(
            "uncertainty separates errors",
            published,
            interval(worst - 0.5),
            "lowest AUROC of entropy for errors over the steps, less 0.5",
        ),
    ]
    for name, told_by in (("kept", "at which a token was revealed"), ("reread", "of revealed tokens read again")):
        found.append(
            Claim(
                f"calibration becomes worse ({name})",
                "the calibration error grows from 0.034 at the first step to 0.415 at the end",
                interval(gaps[name]),
                f"ECE of the last step less that of the first, with the confidence {told_by}",
            )
        )
    return found
