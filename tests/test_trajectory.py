"""What is measured on trajectories, against hand-worked values, the definitions written out, and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not there to compare with: pip install 'unveil[eval]'")
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unveil.evaluate.intervals import Interval
from unveil.evaluate.trajectory import english, probes, python, uncertainty
from unveil.evaluate.trajectory.claims import Claim
from unveil.evaluate.trajectory.commitment import changes, commitment, share
from unveil.evaluate.trajectory.perturbation import Perturbation
from unveil.evaluate.trajectory.resample import Resample, band, interval
from unveil.evaluate.trajectory.sensitivity import sensitivity


@pytest.fixture
def numbers() -> np.random.Generator:
    return np.random.default_rng(0)


def test_commitment_by_hand():
    predicted = np.array([[5, 5, 5, 5], [1, 2, 2, 2], [2, 1, 2, 2], [1, 2, 3, 4], [7, 7, 7, 8]])
    assert commitment(predicted).tolist() == [0, 1, 2, 3, 3]
    assert changes(predicted).tolist() == [0, 1, 2, 3, 1]
    assert share(commitment(predicted), 4).tolist() == [0.2, 0.4, 0.6, 1.0]


def test_commitment_is_its_definition(numbers):
    predicted = numbers.integers(0, 3, (200, 7))
    wanted = [min(s for s in range(7) if all(row[t] == row[-1] for t in range(s, 7))) for row in predicted]
    assert commitment(predicted).tolist() == wanted


def test_auroc_is_scikit_learns_with_ties_and_weights(numbers):
    score, positive = numbers.integers(0, 9, 300) / 9, numbers.random(300) < 0.3
    assert uncertainty.auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    weights = numbers.integers(0, 4, (3, 300)).astype(float)
    found = uncertainty.auroc(score, positive, weights)
    wanted = [roc_auc_score(positive, score, sample_weight=weight) for weight in weights]
    assert found.tolist() == pytest.approx(wanted)
    assert np.isnan(uncertainty.auroc(score, np.zeros(300, bool)))


def test_calibration_by_hand_and_by_scikit_learn(numbers):
    confidence, correct = np.array([0.15, 0.05, 0.95, 0.85, 1.0]), np.array([False, False, True, False, True])
    sums = uncertainty.binned(confidence, correct, 2).sum(0)
    # Two bins: (0.15 + 0.05) / 2 = 0.1 against 0, weight 2/5; 2.8 / 3 against 2/3, weight 3/5.
    assert uncertainty.ece(sums) == pytest.approx(0.4 * 0.1 + 0.6 * (2.8 / 3 - 2 / 3))
    confidence = numbers.random(2000)
    correct = numbers.random(2000) < confidence**2
    points = uncertainty.curve(uncertainty.binned(confidence, correct, 10).sum(0))
    share_right, mean = calibration_curve(correct, confidence, n_bins=10)
    assert [point[0] for point in points] == pytest.approx(mean.tolist())
    assert [point[1] for point in points] == pytest.approx(share_right.tolist())
    assert uncertainty.brier(confidence, correct).mean() == pytest.approx(brier_score_loss(correct, confidence))


def test_resampling_draws_whole_sequences(numbers):
    sequence = np.repeat(np.arange(60), 20)
    level = np.repeat(numbers.normal(size=60), 20)  # all positions of a sequence alike: 60 observations, not 1200
    found = interval(Resample(sequence, draws=4000).mean(level))
    error = level[::20].std() / 60**0.5
    assert found.mean == pytest.approx(level.mean())
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.1)
    some = level > 0
    assert Resample(sequence).mean(level, some)[0] == pytest.approx(level[some].mean())
    several = band(Resample(sequence).mean(np.stack([level, level + 1], 1)))
    assert several[1].low == pytest.approx(several[0].low + 1)  # the same draws for both
    assert np.isnan(interval(Resample(sequence).mean(level, level > 99)).mean)


def test_probes_are_a_regression_of_scikit_learn(numbers):
    sequence, target = np.repeat(np.arange(60), 10), numbers.integers(0, 3, 600)
    states = (np.eye(3)[target] + 0.6 * numbers.normal(size=(600, 3))).astype(np.float32)
    given = probes.split(target, sequence)
    assert not given.fit[given.test].any()
    assert set(sequence[given.test]) == set(range(5, 60, 6))
    found = probes.fit(states, given, strength=0.1)
    other = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(states[given.fit], target[given.fit])
    assert np.mean(found.correct == (other.predict(states[given.test]) == target[given.test])) > 0.98
    usual = np.bincount(target[given.fit]).argmax()
    assert np.array_equal(found.usual, target[given.test] == usual)
    noise = probes.fit(numbers.normal(size=(600, 3)).astype(np.float32), given)
    resample = Resample(sequence)
    score = [probes.scores(p.correct[:, None], p.usual, sequence[given.test], resample)[0, 0] for p in (found, noise)]
    assert score[0][0] == pytest.approx(found.correct.mean())
    assert score[0][2] > 0.5 > 0.2 > abs(score[1][2])
    with pytest.raises(ValueError, match="one class"):
        probes.fit(states, probes.split(np.zeros(600, int), sequence))


def test_rare_tokens_are_left_out_of_probes():
    target = np.array([4] * 6 + [5] * 4 + [6] * 2)
    given = probes.split(target, np.arange(12), types=2)
    assert sorted(set(given.target)) == [-1, 4, 5]
    assert not (given.fit | given.test)[-2:].any()


def test_normalised_scores_and_emergence_by_hand():
    assert probes.normalised(np.array([0.5, 0.25, 1.0]), np.array([0.25, 0.25, 0.25])).tolist() == [1 / 3, 0, 1]
    scores = np.array([[0.1, 0.5, 0.92, 1.0], [0.95, 0.9, 0.9, 1.0], [0.1, 0.2, 0.1, -0.1]])
    assert probes.emergence(scores, np.array([0, 8, 16, 31]))[:2].tolist() == [16, 0]
    assert np.isnan(probes.emergence(scores, np.array([0, 8, 16, 31]))[2])


def test_english_is_labelled_roughly():
    said = "The old man said quickly that Peter had 12 beautiful horses, and she didn't laugh.\n"
    wanted = [
        *("determiner", "adjective", "noun", "verb", "adverb", "determiner", "name", "auxiliary", "number"),
        *("adjective", "noun", "punctuation", "conjunction", "pronoun", "auxiliary", "noun", "punctuation"),
    ]
    assert [name for _, _, name in english.spans(said)] == wanted
    assert english.LABELS.coarse == ["function", "content", "number", "punctuation", "layout"]


def test_python_is_labelled_exactly():
    source = 'def f(x):\n    return f"a{x}" + 1.5  # so\n'
    found = [(source[a:b], name) for a, b, name in python.spans(source)]
    words = [("def", "keyword"), ("f", "name"), ("(", "operator"), ("x", "name"), (")", "operator"), (":", "operator")]
    rest = [("return", "keyword"), ('f"a{x}"', "string"), ("+", "operator"), ("1.5", "number"), ("# so", "comment")]
    assert found == words + rest
    with pytest.raises(ValueError, match="no source of Python"):
        python.spans("x = (\n")


def test_tokens_take_the_class_of_their_word():
    labels = python.LABELS
    pieces = ["def", " me", "an", "(", "", "x", "):", "\n   ", " return", " 12", "34", "\n"]
    wanted = ["keyword", "name", "name", "operator", "name", "name", "operator", "indentation"]
    wanted += ["keyword", "number", "number", "indentation"]
    assert [labels.fine[kind] for kind in labels.of(pieces)] == wanted


def test_the_drop_is_split_by_hand():
    each = Perturbation(
        steps=np.array([4, 16, 28], np.int16),
        position=np.arange(4, dtype=np.int32),
        hit=np.array([[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]], bool),
        before=np.array([1, 0, 1, 1], bool),
        after=np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1], [1, 0, 1]], bool),
        changed=np.zeros((4, 3), bool),
    )
    found, claims = sensitivity({"same": each}, np.array([0, 0, 1, 1]), 32)
    told = found["same"]
    assert [x["mean"] for x in told["direct"]] == [0, 0, 0]  # in the middle one is lost and one is won
    assert [x["mean"] for x in told["collateral"]] == [0, 0.5, 0]
    assert [x["mean"] for x in told["drop"]] == [0, 0.5, 0]
    assert [claim.verdict for claim in claims] == ["not measured", "not measured"]
    assert "2 sequences are too few" in claims[0].sentence
    many = replace(each, **{name: np.tile(getattr(each, name).T, 15).T for name in ("hit", "before", "after")})
    many = replace(many, changed=np.tile(each.changed, (15, 1)), position=np.arange(60, dtype=np.int32))
    _, claims = sensitivity({"same": many}, np.arange(60) // 2, 32)
    assert [claim.verdict for claim in claims] == ["holds", "reversed"]  # the middle, and not directly


def test_a_verdict_follows_from_the_interval():
    ends = {"holds": (0.1, 0.3), "reversed": (-0.3, -0.1), "not shown": (-0.1, 0.3), "not measured": (np.nan, np.nan)}
    for verdict, (low, high) in ends.items():
        claim = Claim("a", "b", Interval((low + high) / 2, low, high), "c")
        assert claim.verdict == verdict
        assert verdict in claim.sentence
