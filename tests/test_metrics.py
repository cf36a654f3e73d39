"""metrics: counts by hand, and intervals against statsmodels' printed values or their own definition."""

import itertools
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


def test_a_record_alone_by_hand():
    """Five seeds of 10,500 of 42,000 rows: the m of a row is binomial, with the sum of squares over the sum of 2."""
    variance = metrics.record_variance(10_500, 5, 42_000)
    assert variance == pytest.approx((0.72 * 2 + 0.28) / 52_500)
    assert metrics.record_variance(42_000, 1, 42_000) == pytest.approx(1 / 42_000)
    low, high = metrics.recorded_score((0.996, variance, True), 28_000, 70_000)
    half = 1.96 * math.sqrt(0.996 * 0.004 * (variance + 1 / 28_000))
    assert (low, high) == pytest.approx((0.996 - half, 0.996 + half), abs=1e-7)


def test_weights_of_own_and_recorded_accuracy():
    """Independent measurements are weighted by inverse variance; rows that both measured count once."""
    own, variance = (0.99, 10_500), 1 / 31_500
    estimate, (low, high), weight = metrics.combined_score(own, (0.996, variance, True), 28_000, 1e15, 1e15)
    assert weight == pytest.approx(0.25) and estimate == pytest.approx(0.25 * 0.99 + 0.75 * 0.996)
    half = 1.96 * math.sqrt(estimate * (1 - estimate) * (1 / 42_000 + 1 / 28_000))
    assert (low, high) == pytest.approx((estimate - half, estimate + half), abs=1e-7)
    # The same rows, all of them in the record: the run's own say less than they would by themselves.
    shared = metrics.combined_score(own, (0.996, 1 / 42_000, True), 28_000, 42_000, 70_000)[2]
    assert 0 < shared < 1 / 42_000 / (1 / 42_000 + 1 / 10_500)


def test_a_record_of_other_digits_is_told_by_its_distance():
    record = (0.996, metrics.record_variance(10_500, 5, 42_000), False)
    assert not metrics.contradicts((0.9942, 10_500), record, 42_000, 70_000)
    assert metrics.contradicts((0.97, 10_500), record, 42_000, 70_000)
    assert metrics.contradicts((0.0, 100), record, 42_000, 70_000)


@pytest.mark.parametrize("correlation", [0.6, 0.9])
@pytest.mark.parametrize(("basis", "same_rows"), [("own", True), *itertools.product(("record", "both"), (True, False))])
def test_expected_scores_cover_95_of_100(correlation, basis, same_rows, scale=20, runs=1500):
    """The competition in small: 70,000 / scale digits, each with its own probability of an error, are drawn into train
    and test; a recipe's record is measured on the same train rows, or on those of another draw.
    """
    total, held, test_rows = 42_000 // scale, 10_500 // scale, 28_000 // scale
    population, chance, inside = total + test_rows, np.random.default_rng(0), 0
    spread = 1 / correlation - 1  # a beta distribution gives two networks' errors on a row this correlation
    for _ in range(runs):
        difficulty = chance.beta(0.05 * spread, 0.95 * spread, population)
        order = chance.permutation(population)
        train, test = order[:total], order[total:]
        right = chance.random(population) >= difficulty
        measured_on = train if same_rows else chance.permutation(population)[:total]
        seeds = [chance.permutation(measured_on)[:held] for _ in range(5)]
        accuracies = [np.mean(chance.random(held) >= difficulty[rows]) for rows in seeds]
        own = float(right[train[:held]].mean()), held
        record = float(np.mean(accuracies)), metrics.record_variance(held, 5, total), same_rows
        if basis == "own":
            low, high = metrics.expected_score(own[0] * held, held, test_rows)
        elif basis == "record":
            low, high = metrics.recorded_score(record, test_rows, population)
        else:
            _, (low, high), _ = metrics.combined_score(own, record, test_rows, total, population)
        inside += low <= right[test].mean() <= high
    assert 0.93 <= inside / runs <= 0.97


def test_errors_and_doubts_are_ordered():
    rows = np.concatenate([probabilities(1, sure=s) for s in (0.6, 0.99, 0.8, 0.7)])
    labels = np.array([2, 2, 1, 2])
    assert metrics.most_confident_errors(rows, labels, 2).tolist() == [1, 3]
    assert metrics.most_doubted(rows, labels, 3).tolist() == [1, 3, 0]
