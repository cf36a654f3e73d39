"""Metrics of predictions that scikit-learn does not have: intervals, calibration, and the hardest rows."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from pipeline.shapes import Float, Float64, Int64, Integer


def wilson_interval(n_correct: int, n_rows: int) -> tuple[float, float]:
    """The 95% confidence interval (low, high) of an accuracy of `n_correct` in `n_rows`.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    interval = binomtest(n_correct, n_rows).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Calibration:
    """Accuracy against confidence, in bins of equal width of the confidence from 0 to 1."""

    edges: Float64[np.ndarray, " edges"]
    rows: Int64[np.ndarray, " bins"]
    confidence: Float64[np.ndarray, " bins"]  # the mean in each bin; NaN if it has no rows
    accuracy: Float64[np.ndarray, " bins"]  # likewise
    interval_95: Float64[np.ndarray, "bins 2"]  # of the accuracy
    # The expected calibration error: the mean over rows of the difference between a bin's accuracy and confidence.
    error: float


def calibration(
    probabilities: Float[np.ndarray, "n 10"], labels: Integer[np.ndarray, " n"], bins: int = 15
) -> Calibration:
    """How accurate predictions of each confidence are.

    Source: C. Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    confidence, correct = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.digitize(confidence, edges[1:-1], right=True)  # a bin contains its upper edge
    rows, n_correct = np.bincount(bin_of, minlength=bins), np.bincount(bin_of, correct, bins).astype(np.int64)
    with np.errstate(invalid="ignore"):
        mean, accuracy = np.bincount(bin_of, confidence, bins) / rows, n_correct / rows
    intervals = [
        wilson_interval(k, n) if n else (np.nan, np.nan) for k, n in zip(n_correct.tolist(), rows.tolist(), strict=True)
    ]
    error = float(np.nansum(rows * np.abs(accuracy - mean)) / rows.sum())
    return Calibration(edges, rows, mean, accuracy, np.array(intervals), error)


def most_confident_errors(
    probabilities: Float[np.ndarray, "n 10"], labels: Integer[np.ndarray, " n"], limit: int
) -> Int64[np.ndarray, " m"]:
    """Indices of at most `limit` wrong predictions, the most confident first."""
    predictions = probabilities.argmax(1)
    errors = np.flatnonzero(predictions != labels)
    return errors[np.argsort(-probabilities[errors, predictions[errors]], kind="stable")][:limit]


def least_likely_labels(
    probabilities: Float[np.ndarray, "n 10"], labels: Integer[np.ndarray, " n"], limit: int
) -> Int64[np.ndarray, " m"]:
    """Indices of at most `limit` rows, the lowest probability of the row's own label first."""
    return np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")[:limit]
