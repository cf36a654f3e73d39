"""metrics: counts by hand, and intervals against statsmodels' printed values or their own definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics


def probabilities(*winners, sure=0.9):
    rows = np.full((len(winners), 10), (1 - sure) / 9, np.float32)
    rows[np.arange(len(winners)), winners] = sure
    return rows


def test_confusion_by_hand():
    answers, labels = np.array([3, 3, 5, 5, 5, 0]), np.array([3, 5, 5, 3, 5, 0], np.uint8)
    counts = metrics.confusion(answers, labels)
    by_hand = np.zeros((10, 10), int)
    by_hand[3, 3], by_hand[5, 3], by_hand[5, 5], by_hand[3, 5], by_hand[0, 0] = 1, 1, 2, 1, 1
    assert np.array_equal(counts, by_hand)
    three, five, seven = (metrics.by_class(counts)[digit] for digit in (3, 5, 7))
    assert (three["precision"], three["recall"], three["rows"]) == (1 / 2, 1 / 2, 2)
    assert (five["precision"], five["recall"], five["rows"]) == (2 / 3, 2 / 3, 3)
    assert (seven["precision"], seven["recall"], seven["rows"]) == (None, None, 0)


def test_cross_entropy_by_hand():
    rows = probabilities(1, 2, sure=0.5)
    assert metrics.cross_entropy(rows, np.array([1, 2])) == pytest.approx(math.log(2))
    assert math.isfinite(metrics.cross_entropy(np.eye(10, dtype=np.float32)[:1], np.array([5])))


@given(st.integers(1, 100_000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_wilson_solves_its_equation(case):
    """Both ends p satisfy (share - p)^2 = z^2 p (1-p) / n, which defines the interval."""
    right, rows = case
    for end in metrics.wilson(right, rows):
        assert 0 <= end <= 1
        if 0 < end < 1:
            gap = (right / rows - end) ** 2
            assert gap == pytest.approx(metrics.Z95**2 * end * (1 - end) / rows, rel=1e-6, abs=1e-15)


def test_expected_score():
    low, high = metrics.expected_score(10_430, 10_500, 28_000)
    p = 10_430 / 10_500
    half = 1.96 * math.sqrt(p * (1 - p) * (1 / 10_500 + 1 / 28_000))
    assert (low, high) == pytest.approx((p - half, p + half), abs=1e-6)
    low, high = metrics.expected_score(337, 337, 450)
    assert 0.97 < low < 0.995 and high == 1


def test_expected_score_covers_95_of_100():
    """Validation and test results drawn from one accuracy: the interval holds the score as often as it says."""
    random = np.random.default_rng(0)
    right = random.binomial(2000, 0.97, 4000)
    scores = random.binomial(3000, 0.97, 4000) / 3000
    inside = [low <= score <= high for (low, high), score in
              zip((metrics.expected_score(int(r), 2000, 3000) for r in right), scores, strict=True)]  # fmt: skip
    assert 0.94 < np.mean(inside) < 0.96


def test_errors_and_doubts_are_ordered():
    rows = np.concatenate([probabilities(1, sure=s) for s in (0.6, 0.99, 0.8, 0.7)])
    labels = np.array([2, 2, 1, 2])
    assert metrics.most_confident_errors(rows, labels, 2).tolist() == [1, 3]
    assert metrics.most_doubted(rows, labels, 3).tolist() == [1, 3, 0]
