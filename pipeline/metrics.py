"""Accuracy with its interval, what a score on other rows may be, confusion, and the hardest errors."""

import math

import numpy as np

Z95 = 1.959963984540054  # the normal distribution's 97.5% point


def cross_entropy(probabilities, labels):
    """Mean negative log probability (nats) of the labels; a probability of 0 counts as the least float32 above it."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def wilson(right, rows):
    """The 95% interval (low, high) of a proportion of which `right` of `rows` were seen.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    share, z2 = right / rows, Z95**2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z95 / (1 + z2 / rows) * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def expected_score(right, rows, test_rows):
    """The 95% prediction interval (low, high) for the accuracy on `test_rows` others, `right` of `rows` being right.

    Variance p(1-p)(1/rows + 1/test_rows): both the estimate and the score vary. Where all or none were right, that
    variance would be 0, and Wilson's centre stands for p in it.
    """
    share = right / rows
    p = share if 0 < right < rows else sum(wilson(right, rows)) / 2
    half = Z95 * math.sqrt(p * (1 - p) * (1 / rows + 1 / test_rows))
    return max(0.0, share - half), min(1.0, share + half)


def confusion(predicted, labels):
    """Counts (10, 10): row the true digit, column the predicted one."""
    return np.bincount(labels.astype(np.int64) * 10 + predicted, minlength=100).reshape(10, 10)


def by_class(counts):
    """Precision, recall and rows of each digit, from confusion counts; None where no row was predicted or true."""

    def share(part, whole):
        return None if whole == 0 else float(part / whole)

    return [
        {
            "digit": digit,
            "rows": int(counts[digit].sum()),
            "precision": share(counts[digit, digit], counts[:, digit].sum()),
            "recall": share(counts[digit, digit], counts[digit].sum()),
        }
        for digit in range(10)
    ]


def calibration(probabilities, labels, bins=15):
    """How often answers of each confidence are right, by equal parts of the confidence from 0 to 1.

    A dict of edges (bins + 1,), rows, confidence and accuracy (bins,; NaN of no rows), interval_95 (bins, 2), and the
    expected calibration error "ece": the mean over rows of the difference of a bin's accuracy and mean confidence.
    Source: C. Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    confidence, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)  # a bin holds its upper edge
    rows = np.bincount(of, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = np.bincount(of, confidence, bins) / rows
        accuracy = np.bincount(of, right, bins) / rows
    hits = np.bincount(of, right, bins)
    intervals = [wilson(hit, count) if count else (math.nan, math.nan) for hit, count in zip(hits, rows, strict=True)]
    some = rows > 0
    return {
        "edges": edges,
        "rows": rows,
        "confidence": means,
        "accuracy": accuracy,
        "interval_95": np.array(intervals),
        "ece": float((rows[some] * np.abs(accuracy - means)[some]).sum() / rows.sum()),
    }


def most_confident_errors(probabilities, labels, most):
    """Indices of at most `most` wrong rows, the most probable wrong answer first."""
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:most]


def most_doubted(probabilities, labels, most):
    """Indices of at most `most` rows, the least probability of their own label first."""
    return np.argsort(probabilities[np.arange(len(labels)), labels], kind="stable")[:most]
