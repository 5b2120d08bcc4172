"""What can be read off the states by a line: linear probes of classes and of tokens, by layer and step.

Shapes: Q positions with states, R steps, E width, D draws.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from .resample import Resample

TARGETS = ("part of speech", "coarse class", "token")
FIT = 5 / 6  # share of the sequences that probes are fitted on: the publication's 1000 of 1200
REACHED = 0.9  # share of its last score at which a target counts as there


@dataclass(frozen=True)
class Probe:
    """Answers of one probe on sequences that it was not fitted on."""

    correct: NDArray[np.bool_]  # (T,)
    usual: NDArray[np.bool_]  # (T,) would the class most frequent in the fitted positions have been right?
    converged: bool


@dataclass(frozen=True)
class Split:
    """Which positions a target is fitted and tested on, and what it is there."""

    target: NDArray[np.integer]  # (Q,) -1: not among the classes that are told apart
    fit: NDArray[np.bool_]  # (Q,)
    test: NDArray[np.bool_]  # (Q,)


def split(target: NDArray[np.integer], sequence: NDArray[np.integer], types: int | None = None) -> Split:
    """Positions of every sixth sequence are tested on. `types`: only so many values, the most frequent fitted ones."""
    names = np.unique(sequence)
    every = round(1 / (1 - FIT))
    test = np.isin(sequence, names[every - 1 :: every]) if len(names) >= every else sequence == names[-1]
    if types is not None:
        values, counts = np.unique(target[~test], return_counts=True)
        kept = values[np.argsort(-counts, kind="stable")[:types]]
        target = np.where(np.isin(target, kept), target, -1)
    known = target >= 0
    return Split(target, ~test & known, test & known)


def fit(states: NDArray[np.floating], given: Split, strength: float = 0.1, iterations: int = 400) -> Probe:
    """Multinomial logistic regression on standardised states (Q, E); `strength` is scikit-learn's C.

    ValueError where the fitted positions are of one class.
    """
    answers = given.target[given.fit]
    values, counts = np.unique(answers, return_counts=True)
    if len(values) < 2:
        raise ValueError("all positions that a probe would be fitted on are of one class: more sequences are needed")
    scale = StandardScaler().fit(states[given.fit].astype(np.float32))
    known, new = (scale.transform(states[which].astype(np.float32)) for which in (given.fit, given.test))
    probe = LogisticRegression(C=strength, max_iter=iterations, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(known, answers)
    right = given.target[given.test]
    usual = values[counts.argmax()]
    return Probe(np.equal(probe.predict(new), right), np.equal(right, usual), bool(np.max(probe.n_iter_) < iterations))


def normalised(accuracy: NDArray, majority: NDArray) -> NDArray[np.float64]:
    """(accuracy - majority) / (1 - majority): 0 for who always answers the most frequent class, 1 for who is right."""
    rest = 1 - np.asarray(majority, float)
    return np.divide(accuracy - majority, rest, out=np.full(np.shape(rest), np.nan), where=rest > 0)


def scores(correct: NDArray[np.bool_], usual: NDArray[np.bool_], sequence: NDArray, resample: Resample) -> NDArray:
    """(1 + D, R, 3) accuracy, majority and normalised score of (T, R) answers, on the sample and on each draw."""
    ones = np.ones(correct.shape)
    accuracy = resample.ratio(correct.astype(float), ones, sequence)
    majority = resample.ratio(np.broadcast_to(usual[:, None], correct.shape).astype(float), ones, sequence)
    return np.stack([accuracy, majority, normalised(accuracy, majority)], -1)


def emergence(scores: NDArray[np.float64], steps: NDArray[np.integer]) -> NDArray[np.float64]:
    """(...,) the first of `steps` (R,) at which scores (..., R) reach 90 % of the last; nan where it is not above 0."""
    last = scores[..., -1:]
    there = scores >= REACHED * last
    found = steps[there.argmax(-1)].astype(float)
    return np.where(last[..., 0] > 0, found, np.nan)
