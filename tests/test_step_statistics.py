"""The statistics of a comparison: the test of a step, its interval, Holm's correction, and published steps."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from pipeline import comparison
from pipeline.settings import Published


def seeds_of(accuracies, rows=1000):
    """Correct or not (seeds, rows) with these accuracies, and nothing in common between seeds."""
    chance = np.random.default_rng(0)
    return np.stack([chance.permutation(rows) < round(accuracy * rows) for accuracy in accuracies])


def test_a_step_is_welchs_test_over_seeds():
    before, after = [0.980, 0.983, 0.981], [0.984, 0.979, 0.988, 0.986]
    step = comparison.step(seeds_of(before), seeds_of(after))
    assert step.difference == pytest.approx(np.mean(after) - np.mean(before))
    variances = np.var(before, ddof=1) / 3, np.var(after, ddof=1) / 4
    t = step.difference / np.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    assert step.p == pytest.approx(2 * scipy.stats.t.sf(t, freedom))
    assert step.low < step.difference - np.sqrt(sum(variances)) and step.high > step.difference


def test_seeds_that_vary_are_no_significant_step():
    """Adam 0.9876 ± 0.0020 and SGD 0.9824 ± 0.0026, 3 seeds each: a test over rows gave a p-value of 1e-9."""
    adam, sgd = ([mean - spread, mean, mean + spread] for mean, spread in ((0.9876, 0.0020), (0.9824, 0.0026)))
    assert comparison.step(seeds_of(adam, 10_000), seeds_of(sgd, 10_000)).p == pytest.approx(0.06, abs=0.01)


def test_seeds_that_tie():
    """1,187 of 1,250 rows for each of three seeds: the variance of their means is a rounding error, not 0."""
    before, after = (np.stack([np.roll(np.arange(1250) < right, k) for k in range(3)]) for right in (1187, 1190))
    assert comparison.step(before, before).p is None
    step = comparison.step(before, after)
    assert step.p is None and step.low <= 3 / 1250 <= step.high


def test_steps_that_cannot_be_tested():
    one, several = seeds_of([0.9]), seeds_of([0.9, 0.8])
    assert comparison.step(one, several) == comparison.Step(pytest.approx(-0.05))
    same = np.ones((3, 50), bool)
    assert comparison.step(same, same) == comparison.Step(0.0, 0.0, 0.0)


def simulated(chance, recipe, rows, seeds, gain=0.0):
    """Correct or not (seeds, rows): logistic in the row's difficulty, what the recipe makes of it, and the seed."""
    logits = 3 + gain + rows[0] + (rows[1] if recipe else 0) + 0.4 * chance.normal(size=(seeds, 1))
    return chance.random(logits.shape) < scipy.special.expit(logits)


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_steps_cover_what_they_claim(gain):
    """Of the 95% intervals, 93 to 97% contain the difference on all rows and seeds; of tests between equal recipes on
    given rows, at most 5% are below 0.05 (Welch's test is slightly conservative with few seeds).
    """
    chance, inside, rejected, runs = np.random.default_rng(0), 0, 0, 1000

    def draw(count):
        return 2.0 * chance.normal(size=count), 0.8 * chance.normal(size=count)

    many = draw(200_000)
    seed_effects = 0.4 * chance.normal(size=many[0].size)
    truth = np.mean(
        scipy.special.expit(3 + gain + sum(many) + seed_effects) - scipy.special.expit(3 + many[0] + seed_effects)
    )
    for _ in range(runs):
        rows = draw(400)
        before = simulated(chance, 0, rows, 5)
        step = comparison.step(before, simulated(chance, 1, rows, 5, gain))
        inside += step.low <= truth <= step.high
        rejected += comparison.step(before, simulated(chance, 0, rows, 5)).p < 0.05
    assert 0.93 <= inside / runs <= 0.97
    assert 0.02 <= rejected / runs <= 0.06


def test_holms_correction_by_hand():
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.9, 0.8]) == [1.0, 1.0] and comparison.holm([]) == []
    rows = [comparison.Row("one"), comparison.Row("two", p=0.03), comparison.Row("three", p=0.02)]
    comparison.adjust(rows)
    assert [row.p_holm for row in rows] == [None, 0.04, 0.04] and [row.significant for row in rows] == [
        False,
        True,
        True,
    ]


def test_a_figure_of_distorted_rows_is_measured_by_their_deviation():
    row = comparison.Row("a", accuracy=0.9, deviation=0.5)
    comparison.against_published(row, Published(0.7, distorted=True), [0.71, 0.72, 0.73])
    assert row.difference == pytest.approx(0.02) and row.in_deviations == pytest.approx(2)


def test_published_steps_are_confirmed_contradicted_or_left_open():
    rows = [
        comparison.Row("one", published=0.97),
        comparison.Row("two", after="one", step=0.002, step_low=0.001, step_high=0.003, p_holm=0.01, published=0.98),
        comparison.Row(
            "three", after="two", step=-0.002, step_low=-0.003, step_high=-0.001, p_holm=0.04, published=0.99
        ),
        comparison.Row(
            "four", after="three", step=-0.001, step_low=-0.003, step_high=0.001, p_holm=0.2, published=0.98
        ),
        comparison.Row("five", after="four", step=-0.001, p_holm=0.2, published=0.5, distorted=0.5),
    ]
    assert comparison.published_steps(rows) == [
        "Published steps confirmed here: two.",
        "Contradicted: three (published: +0.0100 over two; here: -0.0020, 95% interval -0.0030 to -0.0010).",
        "Neither confirmed nor contradicted: four (published: -0.0100 over three; here: -0.0010, 95% interval -0.0030 "
        "to +0.0010).",
    ]
    rows[1].step_low = -0.001  # significant on these rows, but perhaps not on others
    assert comparison.published_steps(rows[:2])[0].startswith("Neither confirmed nor contradicted: two")
    assert comparison.published_steps(rows[:1]) == []


def test_the_table_marks_significant_steps():
    rows = [
        comparison.Row("a", step=0.01, step_low=0.005, step_high=0.015, p=0.001, p_holm=0.002),
        comparison.Row("b", step=0.001, step_low=-0.001, step_high=0.003, p=0.03, p_holm=0.06),
    ]
    text = comparison.as_markdown(rows)
    assert "| +0.0100 * | +0.0050 to +0.0150 | 0.001 | 0.002 |" in text
    assert "| +0.0010 | -0.0010 to +0.0030 | 0.03 | 0.06 |" in text
