"""Statistics of a comparison: means over seeds, tests of the steps between recipes, and published figures."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from pipeline.recipes.settings import Published
from pipeline.shapes import Bool

SIGNIFICANCE_LEVEL = 0.05  # the family-wise error rate of a table's steps


@dataclass
class Row:
    """A recipe in the table; None for figures that do not exist."""

    recipe: str
    parameters: int | None = None
    epochs: int | None = None
    seeds: int = 0
    accuracy: float | None = None  # mean over seeds
    std: float | None = None  # standard deviation over seeds
    baseline: str | None = None  # the recipe that this one changes
    step: float | None = None  # difference from the baseline's accuracy
    step_low: float | None = None  # 95% interval of the step, for new seeds and new rows
    step_high: float | None = None
    step_p_value: float | None = None  # Welch's t-test over seeds, on these rows
    step_p_value_holm: float | None = None  # the same after Holm's correction over the steps of the table
    training_seconds: float | None = None  # mean over seeds
    distorted_accuracy: float | None = None  # on images distorted as in training
    ensemble_accuracy: float | None = None  # of the mean of all seeds' probabilities
    published_accuracy: float | None = None
    published_difference: float | None = None  # from the published accuracy
    std_units: float | None = None  # the same, in standard deviations over seeds
    note: str = ""

    @property
    def significant(self) -> bool:
        """Whether the step is significant after Holm's correction."""
        return self.step_p_value_holm is not None and self.step_p_value_holm < SIGNIFICANCE_LEVEL


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation; the latter is None for fewer than two values."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Step:
    """The difference between the mean accuracies of two recipes, its 95% interval and its p-value.

    The interval and the p-value are None if a recipe has one seed; the p-value also if no seeds differ.
    """

    difference: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


def compare_recipes(before: Bool[np.ndarray, "seeds n"], after: Bool[np.ndarray, "other_seeds n"]) -> Step:
    """Compare two recipes by which rows each of their seeds classifies correctly.

    The p-value is that of Welch's t-test over seeds, which treats the rows as fixed. The interval is for new seeds and
    new rows: to the two variances of Welch's test it adds that of sampling rows, estimated from the paired differences
    minus the seeds' contribution to them, with the degrees of freedom of Welch and Satterthwaite.
    """
    difference = float(after.mean() - before.mean())
    if min(len(before), len(after)) < 2:
        return Step(difference)
    n_rows = before.shape[1]
    n_correct = [correct.sum(1) for correct in (before, after)]  # integers: equal seeds have a variance of exactly 0
    seed_variances = [counts.var(ddof=1) / n_rows**2 / len(counts) for counts in n_correct]
    between_rows = (after.mean(0) - before.mean(0)).var(ddof=1)
    from_seeds = sum(correct.var(0, ddof=1).mean() / len(correct) for correct in (before, after))
    variances = np.array([*seed_variances, max(0.0, between_rows - from_seeds) / n_rows])
    if not variances.any():
        return Step(difference, difference, difference)
    freedom = variances.sum() ** 2 / (variances**2 / [len(before) - 1, len(after) - 1, n_rows - 1]).sum()
    half = float(scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variances.sum()))
    p_value = None
    if any(seed_variances):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the seeds of one recipe may all be equal
            p_value = float(scipy.stats.ttest_ind(n_correct[1], n_correct[0], equal_var=False).pvalue)
    return Step(difference, difference - half, difference + half, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values, which controls the family-wise error rate.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6 (1979).
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order]))
    return [float(value) for value in adjusted]


def adjust_p_values(rows: Sequence[Row]) -> None:
    """Set the Holm-adjusted p-values of a table's steps."""
    tested = [(row, row.step_p_value) for row in rows if row.step_p_value is not None]
    for (row, _), adjusted in zip(tested, holm([p_value for _, p_value in tested]), strict=True):
        row.step_p_value_holm = adjusted


def compare_with_published(row: Row, published: Published, distorted: Sequence[float] = ()) -> None:
    """Set how far a row's accuracy is from the published one.

    distorted: each seed's accuracy on images distorted as in training, if that is what was published.
    """
    accuracy, std = row.accuracy, row.std
    if distorted:
        accuracy, std = mean_and_std(distorted)
        row.distorted_accuracy = accuracy
    if published.accuracy and accuracy is not None:
        row.published_accuracy, row.published_difference = published.accuracy, accuracy - published.accuracy
        row.std_units = row.published_difference / std if std else None
