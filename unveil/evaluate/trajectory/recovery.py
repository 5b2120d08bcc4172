"""Probes of every layer and step of a recording, and which target can be read off first.

Shapes: Q positions with states, R steps, D draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .claims import Claim, told
from .labels import Labels
from .probes import TARGETS, emergence, fit, scores, split
from .recording import Recording
from .resample import Resample, band, interval


def recovery(
    recording: Recording,
    labels: Labels,
    *,
    types: int = 200,
    strength: float = 0.1,
    report: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], list[Claim]]:
    """Figures by target, layer and step, and the claims that they answer, by the last layer.

    `types`: tokens that are told apart, the most frequent ones. `strength`: scikit-learn's C of the regression.
    """
    kind, truth = recording.kind[recording.stated], recording.truth[recording.stated]
    sequence = recording.sequence[recording.stated]
    targets = dict(zip(TARGETS, (kind, labels.above[kind], truth), strict=True))
    layers, steps = recording.states.shape[2], recording.stated_steps
    resample = Resample(sequence)
    found, drawn, done = {}, {}, 0
    for name, target in targets.items():
        given = split(target, sequence, types if name == "token" else None)
        by_layer, unconverged = [], 0
        for layer in range(layers):
            probes = []
            for step in range(len(steps)):
                probes.append(fit(recording.states[:, step, layer], given, strength))
                done += 1
                if report:
                    report(done, len(targets) * layers * len(steps))
            unconverged += sum(not probe.converged for probe in probes)
            correct = np.stack([probe.correct for probe in probes], 1)
            by_layer.append(scores(correct, probes[0].usual, sequence[given.test], resample))
        figures = np.stack(by_layer)  # (layers, 1 + D, R, 3)
        drawn[name] = figures[-1, :, :, 2]
        found[name] = {
            "classes": len(np.unique(given.target[given.fit])),
            "fitted": int(given.fit.sum()),
            "tested": int(given.test.sum()),
            "unconverged": unconverged,
            "accuracy": figures[:, 0, :, 0].tolist(),
            "majority": float(figures[0, 0, 0, 1]),
            "normalised": figures[:, 0, :, 2].tolist(),
            "last_layer": [told(each) for each in band(drawn[name])],
            "emergence": told(interval(emergence(drawn[name], steps))),
        }
    about = {"steps": steps.tolist(), "layers": layers, "types": types, "C": strength, "targets": found}
    return about, claims(drawn, steps)


def claims(drawn: dict[str, NDArray], steps: NDArray[np.integer]) -> list[Claim]:
    """Coarse labels better than tokens, at every step; and earlier."""
    found, token = [], drawn["token"]
    when = emergence(token, steps)
    for name in TARGETS[:2]:
        apart = (drawn[name] - token).min(1)
        found.append(
            Claim(
                f"{name} is read better than the token",
                "part of speech and coarse class are recovered more robustly than token identity",
                interval(apart),
                "smallest difference of normalised probe scores over the steps",
            )
        )
    for name in TARGETS[:2]:
        first = emergence(drawn[name], steps)
        note = f"90 % of the last score at step {first[0]:.0f} and, for the token, {when[0]:.0f}"
        found.append(
            Claim(
                f"{name} is read earlier than the token",
                "part of speech and coarse class are recovered earlier than token identity",
                interval(when - first),
                "steps by which the token comes later",
                note,
            )
        )
    return found
