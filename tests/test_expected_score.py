"""The score to expect: the run's own measurement, the recipe's record, both together, and why a record is left out."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import competition, metrics
from pipeline.settings import Estimate
from pipeline.stages import evaluate, submission
from tests.conftest import SHORT

OWN = {"rows": 10_500, "right": 10_440, "accuracy": 10_440 / 10_500, "chosen_on_these_rows": False}
OWN["rests_on"] = "10,500 validation rows"
NONE = {"rows": 0, "accuracy": None, "record": None, "why_no_record": "the recipe records none"}
RECORD = Estimate(0.9961, 0.0002, 5, 10_500, 31_500, "2026-11-24", "data", "settings")
MEASURED = {"data": "data", "settings": "settings"}
SIZES = {"train_rows": competition.TRAIN_ROWS, "test_rows": competition.TEST_ROWS, "training_rows": 31_500}


def recorded(record=RECORD, sizes=SIZES, training_rows=31_500, measured_with=MEASURED):
    job = SimpleNamespace(settings=SimpleNamespace(estimate=record), manifests={"prepare": {"numbers": SIZES | sizes}})
    return evaluate._recorded(job, measured_with, training_rows)


def test_own_rows_alone():
    expected = submission.expected_score({**OWN, "record": None}, 28_000)
    assert expected["estimate"] == OWN["accuracy"] and expected["rests_on"] == "10,500 validation rows"
    assert expected["interval_95"] == metrics.expected_score(10_440, 10_500, 28_000)
    assert submission.expected_score(NONE, 28_000) is None


def test_a_record_alone_of_this_and_of_other_data():
    same, other = recorded()[0], recorded(measured_with={**MEASURED, "data": "another"})[0]
    assert (same["same_data"], other["same_data"]) == (True, False)
    for record, words in ((same, "on the same data"), (other, "on another draw of the same digits")):
        expected = submission.expected_score({**NONE, "record": record}, 28_000)
        assert expected["estimate"] == 0.9961 and expected["rests_on"].endswith(words)
        assert "record of 2026-11-24: 0.9961, mean of 5 seeds, standard deviation 0.0002" in expected["rests_on"]
        low, high = expected["interval_95"]
        assert high - 0.9961 == pytest.approx(0.9961 - low) and 0.0008 < high - low < 0.0025


def test_both_are_weighted():
    record, _ = recorded(measured_with={**MEASURED, "data": "another"})
    expected = submission.expected_score({**OWN, "record": record}, 28_000)
    variance = metrics.record_variance(10_500, 5, 42_000)
    own = OWN["accuracy"], OWN["rows"]
    estimate, interval, weight = metrics.combined_score(own, (0.9961, variance, False), 28_000, 42_000, 70_000)
    assert (expected["estimate"], expected["interval_95"]) == (estimate, interval)
    assert (
        OWN["accuracy"] < estimate < 0.9961
        and f"(weight {weight:.0%}), and on the recipe's record" in (expected["rests_on"])
    )
    assert "rows that both share count once" in expected["rests_on"]


def test_a_record_that_the_runs_own_rows_contradict_is_left_out():
    """Tables of the same size with other images in them."""
    own = {**OWN, "right": 9_500, "accuracy": 9_500 / 10_500, "record": recorded()[0]}
    expected = submission.expected_score(own, 28_000)
    assert expected["estimate"] == own["accuracy"] and "record is left out" in expected["rests_on"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": Estimate()}, "records none"),
        ({"measured_with": {**MEASURED, "settings": "others"}}, "other settings"),
        ({"sizes": {"train_rows": 60_000, "test_rows": 10_000}}, "42,000 and 28,000 rows, not of 60,000 and 10,000"),
        ({"training_rows": 21_000}, "training on 31,500 rows or more"),
        ({"record": dataclasses.replace(RECORD, training_rows=33_600)}, "training on 33,600 rows or more"),
    ],
)
def test_where_a_record_does_not_apply(changes, words):
    record, why = recorded(**changes)
    assert record is None and words in why


@pytest.mark.parametrize(
    ("fit_all", "folds", "rows"),
    [(True, None, 42_000), (False, None, 31_500), (False, np.arange(42_000) % 5, 33_600), (False, [0, 0, 0, 1, 1], 2)],
)
def test_rows_that_a_network_is_trained_on(fit_all, folds, rows):
    job = SimpleNamespace(manifests={"prepare": {"numbers": SIZES}})
    assert evaluate._training_rows(job, [{"fit_all": fit_all}], folds) == rows


def test_small_tables_say_why_there_is_none(command, finished):
    words = ("--stage", "all", *SHORT, "--set", "train.fit_all=true", "--workspace", finished)
    assert "expected score: none, the recipe's was measured with other settings" in command(*words).out
