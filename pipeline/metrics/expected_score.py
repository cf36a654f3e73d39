"""The score to expect on new rows, from a run's own measurement, its recipe's measured accuracy, or both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.kaggle import competition

Z95 = 1.959963984540054  # the 97.5% quantile of the normal distribution

# Correlation over rows between the errors of two seeds of a recipe: 0.72 for 5 seeds of `quick` on 10,500 rows
# (`--stage compare --recipe quick`), 0.71 for `keras/vgg_batchnorm_dropout`.
ROW_CORRELATION = 0.72

# The number of standard errors between a run's accuracy and that of its recipe above which the latter is ignored. Four,
# because the validation rows of the default split are harder than most: `quick` is 2.5 below its accuracy there.
MAX_STANDARD_ERRORS = 4


@dataclass(frozen=True)
class Measurement:
    """A measured accuracy p. Its variance and covariances are in units of p(1 - p)."""

    accuracy: float
    variance: float  # 1 / n for n rows
    covariance_with_score: float = 0.0  # if some of the test rows may have been measured
    covariance_with_run: float = 0.0  # of a recipe: if the run measured some of the same rows


def recipe_measurement(
    accuracy: float, n_rows: int, seeds: int, same_data: bool, total: int, population: int
) -> Measurement:
    """A recipe's mean accuracy over seeds, each measured on `n_rows` random rows of `total`.

    Some rows are measured for several seeds. Their errors are correlated, so they count for less than new rows.

    same_data: whether these `total` rows are those of the run. Otherwise, they are another random draw from a
        `population` that also contains the test rows.
    """
    times_measured = 1 - n_rows / total + seeds * n_rows / total  # of a row: sum of squares divided by sum
    variance = (ROW_CORRELATION * times_measured + 1 - ROW_CORRELATION) / (seeds * n_rows)
    if same_data:
        return Measurement(accuracy, variance, covariance_with_run=ROW_CORRELATION / total)
    return Measurement(accuracy, variance, ROW_CORRELATION / population, ROW_CORRELATION / population)


def combine(run: Measurement, recipe: Measurement) -> tuple[Measurement, float]:
    """The weighted mean of both, and the weight of the run, which minimizes the variance of the prediction error.

    For independent measurements the weights are inverse variances. Rows that both measured enter through the
    covariance, so that they count once.
    """
    shared, with_score = recipe.covariance_with_run, recipe.covariance_with_score
    weight = (recipe.variance - shared - with_score) / (run.variance + recipe.variance - 2 * shared)
    weight = min(max(weight, 0.0), 1.0)
    rest = 1 - weight
    variance = weight**2 * run.variance + rest**2 * recipe.variance + 2 * weight * rest * shared
    return Measurement(weight * run.accuracy + rest * recipe.accuracy, variance, rest * with_score), weight


def contradicts(run: Measurement, recipe: Measurement) -> bool:
    """Whether the two accuracies are more than MAX_STANDARD_ERRORS apart."""
    p = min(max(run.accuracy, run.variance), 1 - run.variance)
    variance = p * (1 - p) * (run.variance + recipe.variance - 2 * recipe.covariance_with_run)
    return abs(run.accuracy - recipe.accuracy) > MAX_STANDARD_ERRORS * math.sqrt(variance)


def prediction_interval(measurement: Measurement, test_rows: int) -> tuple[float, float]:
    """The 95% prediction interval (low, high) of the accuracy on `test_rows` rows: measurement and score both vary.

    If all or no rows were correct, p(1 - p) would be 0, and the centre of Wilson's interval is used for p.
    """
    p, variance = measurement.accuracy, measurement.variance
    if p in (0, 1):
        p = (p + Z95**2 * variance / 2) / (1 + Z95**2 * variance)
    error_variance = variance + 1 / test_rows - 2 * measurement.covariance_with_score
    half = Z95 * math.sqrt(p * (1 - p) * error_variance)
    return max(0.0, measurement.accuracy - half), min(1.0, measurement.accuracy + half)


def estimate_score(evaluation: Mapping[str, Any], test_rows: int) -> dict[str, Any] | None:
    """The accuracy to expect on `test_rows` new rows, its 95% prediction interval, and what both rest on.

    evaluation: the content of `metrics.json`: the run's own measurement, the recipe's measured accuracy, both, or
        neither, for which the result is None.
    """
    run = recipe = None
    own_rows, known = evaluation["rows"], evaluation.get("measured")
    run_text, measured_text = evaluation.get("rests_on", ""), ""
    if own_rows:
        run = Measurement(evaluation["accuracy"], 1 / own_rows)
        if evaluation["chosen_on_these_rows"]:
            run_text += "; the epoch was chosen on these rows too"
    # A run that measured all rows itself does not need it.
    if known and not (known["same_data"] and own_rows >= competition.TRAIN_ROWS):
        accuracy, n_rows, seeds, same_data = (known[name] for name in ("accuracy", "rows", "seeds", "same_data"))
        total, population = competition.TRAIN_ROWS, competition.MNIST_ROWS
        recipe = recipe_measurement(accuracy, n_rows, seeds, same_data, total, population)
        measured_text = _describe_measured(known)
    if run and recipe and contradicts(run, recipe):
        recipe = None
        run_text += "; the recipe's measured accuracy is left out: it is more than four standard errors away"
    measurement, rests_on = run or recipe, run_text if run else measured_text
    if run and recipe:
        measurement, weight = combine(run, recipe)
        rests_on = (
            f"two measurements, with their overlap taken into account: {weight:.0%} on {run_text}; "
            f"{1 - weight:.0%} on {measured_text}"
        )
    if measurement is None:
        return None
    interval = prediction_interval(measurement, test_rows)
    return {"estimate": measurement.accuracy, "interval_95": interval, "rests_on": rests_on}


def _describe_measured(recipe: Mapping[str, Any]) -> str:
    """What the recipe's measured accuracy is and where it was measured."""
    how = f"{recipe['rows']:,} rows out of fold"
    if recipe["seeds"] > 1:
        how = (
            f"mean of {recipe['seeds']} seeds, standard deviation {recipe['std']:.4f}, "
            f"{recipe['rows']:,} rows held out of each training"
        )
    where = "on the same data" if recipe["same_data"] else "on another draw of the same digits"
    return f"the recipe's measured accuracy of {recipe['date']}: {recipe['accuracy']:.4f}, {how}, measured {where}"
