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
    return _prediction_interval(right / rows, 1 / rows, 1 / rows + 1 / test_rows)


# Correlation over rows between the errors of two seeds of a recipe: 0.72 for 5 seeds of `quick` on 10,500 rows
# (`--stage compare --recipe quick`, answers.npy), 0.71 for `keras/vgg_batchnorm_dropout`.
ROW_CORRELATION = 0.72


def record_variance(rows, seeds, total):
    """The variance, in units of p(1 - p), of a mean accuracy over seeds, each measured on random `rows` of `total`.

    Some rows are measured for several seeds. Their errors are correlated, so that they count for less than new rows.
    """
    repeated = 1 - rows / total + seeds * rows / total  # sum of m^2 / sum of m: a row is measured m times
    return (ROW_CORRELATION * repeated + 1 - ROW_CORRELATION) / (seeds * rows)


def combined_score(own, record, test_rows, total, population):
    """The accuracy to expect on `test_rows` others from a run's own measurement and a record of its recipe.

    own: (accuracy, rows).
    record: (accuracy, variance in units of p(1 - p), whether it was measured on the same `total` rows as `own`, or else
        on another random draw of as many from `population`; some rows of such a draw are among the test rows).
    Returns the estimate, its 95% prediction interval (low, high), and the weight of `own`. The weights minimize the
    variance of the prediction error (inverse variances, for independent measurements). Rows that both measurements
    share enter through their covariance, so that they count once.
    """
    own_variance, record_variance, same_rows = 1 / own[1], record[1], record[2]
    shared = ROW_CORRELATION / (total if same_rows else population)
    with_test = 0 if same_rows else ROW_CORRELATION / population
    weight = (record_variance - shared - with_test) / (own_variance + record_variance - 2 * shared)
    weight = min(max(weight, 0.0), 1.0)
    rest = 1 - weight
    variance = weight**2 * own_variance + rest**2 * record_variance + 2 * weight * rest * shared
    accuracy = weight * own[0] + rest * record[0]
    return accuracy, _prediction_interval(accuracy, variance, variance + 1 / test_rows - 2 * rest * with_test), weight


def recorded_score(record, test_rows, population):
    """The 95% prediction interval (low, high) of a run without validation rows of its own, from a record as above."""
    accuracy, variance, same_rows = record
    with_test = 0 if same_rows else ROW_CORRELATION / population
    return _prediction_interval(accuracy, variance, variance + 1 / test_rows - 2 * with_test)


def contradicts(own, record, total, population):
    """Whether two measurements, as for `combined_score`, are more than four standard errors apart.

    Four, because the validation rows of the default split are harder than most: `quick` is 2.6 below its record there.
    """
    p = min(max(own[0], 1 / own[1]), 1 - 1 / own[1])
    shared = ROW_CORRELATION / (total if record[2] else population)
    return abs(own[0] - record[0]) > 4 * math.sqrt(p * (1 - p) * (1 / own[1] + record[1] - 2 * shared))


def _prediction_interval(accuracy, variance, difference):
    """The 95% interval of a score.

    variance: of the estimate. difference: of the estimate minus the score. Both in units of p(1 - p).
    """
    p = accuracy if 0 < accuracy < 1 else sum(wilson(accuracy / variance, 1 / variance)) / 2
    half = Z95 * math.sqrt(p * (1 - p) * difference)
    return max(0.0, accuracy - half), min(1.0, accuracy + half)


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
