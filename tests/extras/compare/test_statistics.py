"""significance: the test of a step, its interval, Holm's correction, and the distance from published figures."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from pipeline.extras.compare.statistics import (
    Row,
    Step,
    adjust_p_values,
    compare_recipes,
    compare_with_published,
    holm,
    mean_and_std,
)
from pipeline.recipes.settings import Published


def make_correct(accuracies, n_rows=1000):
    """Which rows each seed classifies correctly (seeds, n), with these accuracies and independent between seeds."""
    random = np.random.default_rng(0)
    return np.stack([random.permutation(n_rows) < round(accuracy * n_rows) for accuracy in accuracies])


def test_mean_and_std_over_seeds():
    assert mean_and_std([0.5, 0.7]) == (pytest.approx(0.6), pytest.approx(np.sqrt(0.02)))
    assert mean_and_std([0.5]) == (0.5, None)


def test_the_p_value_is_that_of_welchs_test_over_seeds():
    before, after = [0.980, 0.983, 0.981], [0.984, 0.979, 0.988, 0.986]
    step = compare_recipes(make_correct(before), make_correct(after))
    assert step.difference == pytest.approx(np.mean(after) - np.mean(before))
    variances = np.var(before, ddof=1) / 3, np.var(after, ddof=1) / 4
    t = step.difference / np.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    assert step.p_value == pytest.approx(2 * scipy.stats.t.sf(t, freedom))
    assert step.low < step.difference - np.sqrt(sum(variances)) and step.high > step.difference


def test_a_difference_within_the_variation_of_seeds_is_not_significant():
    """Adam 0.9876 ± 0.0020 and SGD 0.9824 ± 0.0026, 3 seeds each: a test over rows has a p-value of 1e-9."""
    adam, sgd = ([mean - std, mean, mean + std] for mean, std in ((0.9876, 0.0020), (0.9824, 0.0026)))
    step = compare_recipes(make_correct(adam, 10_000), make_correct(sgd, 10_000))
    assert step.p_value == pytest.approx(0.06, abs=0.01)


def test_seeds_with_equal_accuracies():
    """1,187 of 1,250 rows for each of three seeds: in floating point, the variance of their means is not exactly 0."""
    before, after = (
        np.stack([np.roll(np.arange(1250) < n_correct, k) for k in range(3)]) for n_correct in (1187, 1190)
    )
    assert compare_recipes(before, before).p_value is None
    step = compare_recipes(before, after)
    assert step.p_value is None and step.low <= 3 / 1250 <= step.high


def test_steps_that_cannot_be_tested():
    single, several = make_correct([0.9]), make_correct([0.9, 0.8])
    step = compare_recipes(single, several)
    assert step == Step(step.difference) and step.difference == pytest.approx(-0.05)
    same = np.ones((3, 50), bool)
    assert compare_recipes(same, same) == Step(0.0, 0.0, 0.0)


def simulate(random, recipe, rows, seeds, gain=0.0):
    """Which rows are correct (seeds, n): logistic in the row's difficulty, its effect on the recipe, and the seed."""
    logits = 3 + gain + rows[0] + (rows[1] if recipe else 0) + 0.4 * random.normal(size=(seeds, 1))
    return random.random(logits.shape) < scipy.special.expit(logits)


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_intervals_contain_the_difference_and_equal_recipes_rarely_differ(gain):
    """Of the 95% intervals, 93 to 97% contain the difference on all rows and seeds; of tests between equal recipes on
    the same rows, at most 6% are below 0.05 (Welch's test is slightly conservative with few seeds).
    """
    random, inside, rejected, runs = np.random.default_rng(0), 0, 0, 500

    def draw(count):
        return 2.0 * random.normal(size=count), 0.8 * random.normal(size=count)

    many = draw(200_000)
    seed_effects = 0.4 * random.normal(size=many[0].size)
    truth = np.mean(
        scipy.special.expit(3 + gain + sum(many) + seed_effects) - scipy.special.expit(3 + many[0] + seed_effects)
    )
    for _ in range(runs):
        rows = draw(400)
        before = simulate(random, 0, rows, 5)
        step = compare_recipes(before, simulate(random, 1, rows, 5, gain))
        inside += step.low <= truth <= step.high
        rejected += compare_recipes(before, simulate(random, 0, rows, 5)).p_value < 0.05
    assert 0.93 <= inside / runs <= 0.97
    assert 0.02 <= rejected / runs <= 0.06


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    rows = [Row("first"), Row("second", step_p_value=0.03), Row("third", step_p_value=0.02)]
    adjust_p_values(rows)
    assert [row.step_p_value_holm for row in rows] == [None, 0.04, 0.04]
    assert [row.significant for row in rows] == [False, True, True]


def test_distance_from_the_published_accuracy():
    row = Row("quick", accuracy=0.9, std=0.05)
    compare_with_published(row, Published(accuracy=0.7))
    assert row.published_difference == pytest.approx(0.2) and row.std_units == pytest.approx(4)
    unpublished, failed = Row("quick", accuracy=0.9), Row("quick")
    compare_with_published(unpublished, Published())
    compare_with_published(failed, Published(accuracy=0.7))
    assert unpublished.published_accuracy is failed.published_accuracy is None


def test_a_figure_published_for_distorted_images_is_compared_with_distorted_images():
    row = Row("quick", accuracy=0.9, std=0.5)
    compare_with_published(row, Published(accuracy=0.7, distorted=True), [0.71, 0.72, 0.73])
    assert row.distorted_accuracy == pytest.approx(0.72)
    assert row.published_difference == pytest.approx(0.02) and row.std_units == pytest.approx(2)
