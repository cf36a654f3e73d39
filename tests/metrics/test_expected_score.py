"""The expected score: intervals by hand and in simulations, from the run, the recipe's measured accuracy or both; and
when the latter does not apply.
"""

import itertools
import json
import math

import numpy as np
import pytest

from pipeline.kaggle import competition
from pipeline.metrics import expected_score
from pipeline.metrics.expected_score import (
    Measurement,
    combine,
    contradicts,
    estimate_score,
    prediction_interval,
    recipe_measurement,
)
from pipeline.recipes import config
from pipeline.recipes.config import accuracy_settings, digest, load_recipe
from pipeline.recipes.settings import Measured
from pipeline.stages import evaluate
from tests.conftest import TINY
from tests.contexts import make_context

INFINITE = 10**15  # rows: no row is measured twice
RUN = {"rows": 10_500, "n_correct": 10_440, "accuracy": 10_440 / 10_500, "chosen_on_these_rows": False}
RUN["rests_on"] = "10,500 validation rows"
NO_RUN = {"rows": 0, "accuracy": None}
MEASURED = {
    "accuracy": 0.9961,
    "std": 0.0002,
    "seeds": 5,
    "rows": 10_500,
    "training_rows": 31_500,
    "date": "2026-11-24",
}
SAME_DATA, OTHER_DATA = MEASURED | {"same_data": True}, MEASURED | {"same_data": False}
SIZES = {"train_rows": competition.TRAIN_ROWS, "test_rows": competition.TEST_ROWS, "training_rows": 31_500}


def test_interval_of_a_run_by_hand():
    p = 10_430 / 10_500
    half = 1.96 * math.sqrt(p * (1 - p) * (1 / 10_500 + 1 / 28_000))
    assert prediction_interval(Measurement(p, 1 / 10_500), 28_000) == pytest.approx((p - half, p + half), abs=1e-6)
    low, high = prediction_interval(Measurement(1.0, 1 / 337), 450)
    assert 0.97 < low < 0.995 and high == 1


def test_interval_of_a_record_by_hand():
    """Five seeds of 10,500 of 42,000 rows: the m of a row is binomial, with the sum of squares over the sum of 2."""
    recipe = recipe_measurement(0.996, 10_500, 5, True, 42_000, 70_000)
    assert recipe.variance == pytest.approx((0.72 * 2 + 0.28) / 52_500)
    assert recipe_measurement(0.996, 42_000, 1, True, 42_000, 70_000).variance == pytest.approx(1 / 42_000)
    half = 1.96 * math.sqrt(0.996 * 0.004 * (recipe.variance + 1 / 28_000))
    assert prediction_interval(recipe, 28_000) == pytest.approx((0.996 - half, 0.996 + half), abs=1e-7)


def test_weights_of_run_and_record():
    """Independent measurements are weighted by inverse variance; rows that both measured count once."""
    run, recipe = Measurement(0.99, 1 / 10_500), recipe_measurement(0.996, 31_500, 1, True, INFINITE, INFINITE)
    combined, weight = combine(run, recipe)
    assert weight == pytest.approx(0.25) and combined.accuracy == pytest.approx(0.25 * 0.99 + 0.75 * 0.996)
    half = 1.96 * math.sqrt(combined.accuracy * (1 - combined.accuracy) * (1 / 42_000 + 1 / 28_000))
    expected = combined.accuracy - half, combined.accuracy + half
    assert prediction_interval(combined, 28_000) == pytest.approx(expected, abs=1e-7)
    # A recipe that measured the run's rows as well: the run has a smaller weight than for independent measurements.
    _, weight = combine(run, recipe_measurement(0.996, 42_000, 1, True, 42_000, 70_000))
    assert 0 < weight < 1 / 42_000 / (1 / 42_000 + 1 / 10_500)


def test_a_record_of_other_digits_is_far_from_the_run():
    recipe = recipe_measurement(0.996, 10_500, 5, False, 42_000, 70_000)
    assert not contradicts(Measurement(0.9942, 1 / 10_500), recipe)
    assert contradicts(Measurement(0.97, 1 / 10_500), recipe)
    assert contradicts(Measurement(0.0, 1 / 100), recipe)


def test_intervals_of_runs_contain_95_percent_of_scores():
    random = np.random.default_rng(0)
    accuracies, scores = random.binomial(2000, 0.97, 4000) / 2000, random.binomial(3000, 0.97, 4000) / 3000
    intervals = [prediction_interval(Measurement(accuracy, 1 / 2000), 3000) for accuracy in accuracies]
    inside = [low <= score <= high for (low, high), score in zip(intervals, scores, strict=True)]
    assert 0.94 < np.mean(inside) < 0.96


@pytest.mark.parametrize("correlation", [pytest.param(0.6, marks=pytest.mark.slow), 0.9])
@pytest.mark.parametrize(("basis", "same_data"), [("run", True), *itertools.product(("recipe", "both"), (True, False))])
def test_intervals_contain_95_percent_of_scores(correlation, basis, same_data, scale=20, runs=1000):
    """The competition in small: 70,000 / scale digits, each with its own probability of an error, are drawn into train
    and test. The recipe is measured on the same training rows, or on those of another draw.
    """
    total, held_out, test_rows = 42_000 // scale, 10_500 // scale, 28_000 // scale
    population, random, inside = total + test_rows, np.random.default_rng(0), 0
    spread = 1 / correlation - 1  # a beta distribution gives the errors of two networks on a row this correlation
    for _ in range(runs):
        difficulty = random.beta(0.05 * spread, 0.95 * spread, population)
        order = random.permutation(population)
        train, test = order[:total], order[total:]
        correct = random.random(population) >= difficulty
        measured_on = train if same_data else random.permutation(population)[:total]
        seeds = [random.permutation(measured_on)[:held_out] for _ in range(5)]
        accuracies = [np.mean(random.random(held_out) >= difficulty[rows]) for rows in seeds]
        run = Measurement(float(correct[train[:held_out]].mean()), 1 / held_out)
        recipe = recipe_measurement(float(np.mean(accuracies)), held_out, 5, same_data, total, population)
        measurement = {"run": run, "recipe": recipe, "both": combine(run, recipe)[0]}[basis]
        low, high = prediction_interval(measurement, test_rows)
        inside += low <= correct[test].mean() <= high
    assert 0.93 <= inside / runs <= 0.97


def test_estimate_from_the_run():
    expected = estimate_score({**RUN, "measured": None}, 28_000)
    interval = prediction_interval(Measurement(RUN["accuracy"], 1 / 10_500), 28_000)
    assert expected == {"estimate": RUN["accuracy"], "interval_95": interval, "rests_on": "10,500 validation rows"}
    chosen = estimate_score({**RUN, "measured": None, "chosen_on_these_rows": True}, 28_000)
    assert chosen["rests_on"].endswith("; the epoch was chosen on these rows too")
    assert estimate_score({**NO_RUN, "measured": None}, 28_000) is None


@pytest.mark.parametrize(
    ("recipe", "where"), [(SAME_DATA, "on the same data"), (OTHER_DATA, "on another draw of the same digits")]
)
def test_estimate_from_the_measured_accuracy(recipe, where):
    expected = estimate_score({**NO_RUN, "measured": recipe}, 28_000)
    assert expected["estimate"] == 0.9961 and expected["rests_on"].endswith(where)
    assert "measured accuracy of 2026-11-24: 0.9961, mean of 5 seeds, standard deviation 0.0002" in expected["rests_on"]
    low, high = expected["interval_95"]
    assert high - 0.9961 == pytest.approx(0.9961 - low) and 0.0008 < high - low < 0.0025


def test_estimate_from_the_measured_accuracy_out_of_fold():
    recipe = SAME_DATA | {"seeds": 1, "rows": 42_000}
    assert (
        "0.9961, 42,000 rows out of fold, measured"
        in estimate_score({**NO_RUN, "measured": recipe}, 28_000)["rests_on"]
    )


def test_estimate_from_both():
    expected = estimate_score({**RUN, "measured": OTHER_DATA}, 28_000)
    recipe = recipe_measurement(0.9961, 10_500, 5, False, 42_000, 70_000)
    combined, weight = combine(Measurement(RUN["accuracy"], 1 / 10_500), recipe)
    assert expected["estimate"] == combined.accuracy and RUN["accuracy"] < combined.accuracy < 0.9961
    assert expected["interval_95"] == prediction_interval(combined, 28_000)
    text = (
        f"overlap taken into account: {weight:.0%} on 10,500 validation rows; {1 - weight:.0%} on the recipe's measured"
    )
    assert text in expected["rests_on"]


def test_a_run_that_measured_all_rows_of_the_record_does_not_need_it():
    run = RUN | {"rows": 42_000, "accuracy": 41_875 / 42_000}
    assert estimate_score({**run, "measured": SAME_DATA}, 28_000)["estimate"] == run["accuracy"]
    assert run["accuracy"] > estimate_score({**run, "measured": OTHER_DATA}, 28_000)["estimate"] > 0.9961


def test_a_record_that_the_run_contradicts_is_left_out():
    """Tables of the same size with other images in them."""
    run = RUN | {"accuracy": 9_500 / 10_500, "measured": SAME_DATA}
    expected = estimate_score(run, 28_000)
    assert expected["estimate"] == run["accuracy"] and "measured accuracy is left out" in expected["rests_on"]


@pytest.fixture
def why_no_record(tmp_path):
    """`evaluate._why_not_measured` for images with the mean pixel of MNIST."""
    recipe = load_recipe("quick")

    def call(measured=None, assignments=(), sizes=(), fit_all=False, mean=competition.MEAN_PIXEL):
        images = np.full((1000, 28, 28), int(mean), np.uint8)
        images[: round(mean % 1 * 1000)] += 1
        np.save(tmp_path / "images.npy", images)
        fields = {"seeds": 5, "training_rows": 31_500, "settings": digest(accuracy_settings(recipe))} | (measured or {})
        changed = load_recipe("quick", assignments).replace(measured=Measured(**fields))
        files = {"prepare/train_images.npy": tmp_path / "images.npy"}
        manifests = {"prepare": {"numbers": SIZES | dict(sizes)}}
        context = make_context(changed, files, manifests=manifests)
        return evaluate._why_not_measured(context, [{"fit_all": fit_all}])

    return call


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"fit_all": True, "measured": {"training_rows": 42_000}}, ""),
        ({"measured": {"seeds": 0}}, "has no measured accuracy"),
        ({"assignments": ["train.epochs=13"]}, "other settings (train.epochs 12 -> 13)"),
        ({"measured": {"settings": "0" * 12}}, "the recipe was changed since"),
        ({"sizes": {"train_rows": 60_000, "test_rows": 10_000}}, "this data set has 60,000 and 10,000"),
        ({"sizes": {"training_rows": 21_000}}, "requires at least 31,500 training rows"),
        ({"measured": {"training_rows": 33_600}}, "requires at least 33,600 training rows"),
        ({"mean": 72.9}, "not MNIST's: their mean pixel is 72.90"),
        ({"mean": 33.1}, "not MNIST's"),
    ],
)
def test_when_a_record_does_not_apply(why_no_record, changes, reason):
    text = why_no_record(**changes)
    assert reason in text and bool(reason) == bool(text)


@pytest.fixture
def run_with_record(command, tiny, monkeypatch):
    """Run `--stage all` with a recipe of the current settings and data; returns its output and the receipt."""

    def call(*options):
        arguments = ("--stage", "all", *TINY, *options, "--workspace", tiny)
        assert command(*arguments).code == 0
        measured = json.loads((tiny / "data/runs/quick/evaluate/metrics.json").read_text())["measured_with"]
        recipe = {"accuracy": 0.9, "std": 0.01, "seeds": 5, "rows": 100, "training_rows": 300}
        recipe |= {"data": measured["data"], "date": "2026-01-02", "settings": measured["digest"]}
        monkeypatch.setattr(config, "read_measured", lambda: {"quick": Measured(**recipe)})
        builtin = config.load_recipe("quick", [*TINY[3::2], *options[1::2]])
        load_recipe = config.load_recipe
        monkeypatch.setattr(
            config, "load_recipe", lambda name, changes=(): load_recipe(name, changes) if changes else builtin
        )
        run = command(*arguments)
        assert run.code == 0 and "train: fresh" in run.out
        return run.out, json.loads((tiny / "submissions/quick/submission.json").read_text())

    return call


def test_a_run_on_small_tables_says_why_there_is_no_expected_score(run_with_record):
    out, receipt = run_with_record("--set", "train.fit_all=true")
    assert receipt["expected_score"] is None
    assert "expected   none: the recipe's measured accuracy applies only to 42,000 training and 28,000 test" in out


def test_from_the_record_to_the_last_lines_of_a_run(run_with_record, tiny, monkeypatch):
    """As if the competition's tables were as small as the test's."""
    images = np.load(tiny / "data/prepared/arrays/train_images.npy")
    for name, value in {"TRAIN_ROWS": 400, "TEST_ROWS": 100, "MEAN_PIXEL": float(images.mean()) + 0.2}.items():
        monkeypatch.setattr(evaluate, name, value)
    monkeypatch.setattr(competition, "TRAIN_ROWS", 400)
    monkeypatch.setattr(competition, "MNIST_ROWS", 500)
    monkeypatch.setattr(expected_score, "contradicts", lambda run, recipe: False)
    out, receipt = run_with_record()
    run = Measurement(receipt["validation"]["accuracy"], 1 / 100)
    combined, _ = combine(run, recipe_measurement(0.9, 100, 5, True, 400, 500))
    low, high = prediction_interval(combined, 100)
    assert receipt["expected_score"]["estimate"] == pytest.approx(combined.accuracy)
    assert receipt["expected_score"]["interval_95"] == pytest.approx([low, high])
    assert f"expected   {combined.accuracy:.4f} on Kaggle (95% prediction interval {low:.4f} to {high:.4f})" in out
    assert "two measurements" in out and "on the same data" in out
    assert "the recipe's measured accuracy of 2026-01-02: 0.9000, mean of 5 seeds" in out
