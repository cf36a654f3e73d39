"""metrics: counts by hand, and intervals against their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import classification
from pipeline.metrics.expected_score import Z95


def make_probabilities(*predictions, confidence=0.9):
    probabilities = np.full((len(predictions), 10), (1 - confidence) / 9, np.float32)
    probabilities[np.arange(len(predictions)), predictions] = confidence
    return probabilities


@given(st.integers(1, 100_000).flatmap(lambda n_rows: st.tuples(st.integers(0, n_rows), st.just(n_rows))))
def test_wilson_interval_solves_its_equation(case):
    """Both ends p satisfy (accuracy - p)^2 = z^2 p (1 - p) / n, which defines the interval."""
    n_correct, n_rows = case
    for end in classification.wilson_interval(n_correct, n_rows):
        assert 0 <= end <= 1
        if 0 < end < 1:
            squared_difference = (n_correct / n_rows - end) ** 2
            assert squared_difference == pytest.approx(Z95**2 * end * (1 - end) / n_rows, rel=1e-6, abs=1e-15)


def test_calibration_by_hand():
    # Predictions 0, 0, 0, 1 with confidence 0.9, 0.9, 0.65 and 0.35: correct, wrong, correct, wrong.
    probabilities = np.zeros((4, 10))
    probabilities[0, 0] = probabilities[1, 0] = 0.9
    probabilities[2, 0], probabilities[3, 1] = 0.65, 0.35
    calibration = classification.calibration(probabilities, np.array([0, 5, 0, 5]), bins=5)
    assert calibration.rows.tolist() == [0, 1, 0, 1, 2]
    assert calibration.accuracy[[1, 3, 4]].tolist() == [0, 1, 0.5] and np.isnan(calibration.accuracy[0])
    assert calibration.confidence[[1, 3, 4]] == pytest.approx([0.35, 0.65, 0.9])
    assert calibration.error == pytest.approx((0.35 + 0.35 + 2 * 0.4) / 4)
    assert tuple(calibration.interval_95[4]) == classification.wilson_interval(1, 2)


def test_a_bin_of_the_calibration_contains_its_upper_edge():
    probabilities = np.array([[0.2] * 5 + [0] * 5, [1.0] + [0] * 9])
    assert classification.calibration(probabilities, np.array([0, 0]), bins=5).rows.tolist() == [1, 0, 0, 0, 1]


def test_errors_and_least_likely_labels_are_ordered():
    confidences = (0.6, 0.99, 0.8, 0.7)
    probabilities = np.concatenate([make_probabilities(1, confidence=confidence) for confidence in confidences])
    labels = np.array([2, 2, 1, 2])
    assert classification.most_confident_errors(probabilities, labels, 2).tolist() == [1, 3]
    assert classification.least_likely_labels(probabilities, labels, 3).tolist() == [1, 3, 0]
