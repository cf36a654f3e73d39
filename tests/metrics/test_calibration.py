"""Temperature scaling against known temperatures, and what it must not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.calibration import calibrate, fit_temperature


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_calibrated_probabilities_are_those_of_scaled_logits(seed, temperature):
    logits = np.random.default_rng(seed).normal(0, 2, (20, 10))
    calibrated = calibrate(softmax(logits), temperature)
    assert calibrated == pytest.approx(softmax(logits / temperature), abs=1e-9)
    assert np.array_equal(calibrated.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_drawn_labels_is_found(temperature):
    """Labels are drawn from softmax(logits); the predictions are from logits that are multiplied by the temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 10))
    labels = (softmax(logits).cumsum(1) > rng.random((len(logits), 1))).argmax(1).astype(np.uint8)
    assert fit_temperature(softmax(logits * temperature), labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("n_rows", [10, 900])
def test_without_errors_the_certainty_is_that_of_the_number_of_rows(n_rows):
    """As if one of n + 2 rows had a random label."""
    probabilities = np.full((n_rows, 10), 0.3 / 9)
    probabilities[:, 4] = 0.7
    labels = np.full(n_rows, 4, np.uint8)
    calibrated = calibrate(probabilities, fit_temperature(probabilities, labels))
    assert calibrated[:, 4] == pytest.approx(1 - 0.9 / (n_rows + 2), abs=1e-4)


def test_certain_predictions_are_possible():
    probabilities = np.eye(10, dtype=np.float32)
    labels = np.arange(10, dtype=np.uint8)
    assert np.isfinite(calibrate(probabilities, fit_temperature(probabilities, labels))).all()
