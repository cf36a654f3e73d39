"""The score to expect: the run's own measurement, the recipe's record, both together, and why a record is left out."""

import dataclasses
import json
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


@pytest.fixture
def recorded(tmp_path):
    """`evaluate._recorded` on images with the mean pixel of MNIST."""

    def call(record=RECORD, sizes=SIZES, training_rows=31_500, measured_with=MEASURED, mean=competition.MEAN_PIXEL):
        images = np.full((1, 1000), int(mean), np.uint8)
        images[0, : round(mean % 1 * 1000)] += 1
        np.save(tmp_path / "images.npy", images)
        job = SimpleNamespace(
            settings=SimpleNamespace(estimate=record),
            manifests={"prepare": {"numbers": SIZES | sizes}},
            paths={"prepare/train_images.npy": tmp_path / "images.npy"},
        )
        return evaluate._recorded(job, measured_with, training_rows)

    return call


def test_own_rows_alone():
    expected = submission.expected_score({**OWN, "record": None}, 28_000)
    assert expected["estimate"] == OWN["accuracy"] and expected["rests_on"] == "10,500 validation rows"
    assert expected["interval_95"] == metrics.expected_score(10_440, 10_500, 28_000)
    assert submission.expected_score(NONE, 28_000) is None


def test_a_record_alone_of_this_and_of_other_data(recorded):
    same, other = recorded()[0], recorded(measured_with={**MEASURED, "data": "another"})[0]
    assert (same["same_data"], other["same_data"]) == (True, False)
    for record, words in ((same, "on the same data"), (other, "on another draw of the same digits")):
        expected = submission.expected_score({**NONE, "record": record}, 28_000)
        assert expected["estimate"] == 0.9961 and expected["rests_on"].endswith(words)
        assert "record of 2026-11-24: 0.9961, mean of 5 seeds, standard deviation 0.0002" in expected["rests_on"]
        low, high = expected["interval_95"]
        assert high - 0.9961 == pytest.approx(0.9961 - low) and 0.0008 < high - low < 0.0025


def test_both_are_weighted(recorded):
    record, _ = recorded(measured_with={**MEASURED, "data": "another"})
    expected = submission.expected_score({**OWN, "record": record}, 28_000)
    variance = metrics.record_variance(10_500, 5, 42_000)
    own = OWN["accuracy"], OWN["rows"]
    estimate, interval, weight = metrics.combined_score(own, (0.9961, variance, False), 28_000, 42_000, 70_000)
    assert (expected["estimate"], expected["interval_95"]) == (estimate, interval)
    assert OWN["accuracy"] < estimate < 0.9961
    words = (
        f"overlap taken into account: {weight:.0%} on 10,500 validation rows; {1 - weight:.0%} on the recipe's record"
    )
    assert words in expected["rests_on"]


def test_a_record_of_rows_that_the_run_measured_itself_adds_nothing(recorded):
    own = {**OWN, "rows": 42_000, "right": 41_875, "accuracy": 41_875 / 42_000}
    same, other = recorded()[0], recorded(measured_with={**MEASURED, "data": "another"})[0]
    assert submission.expected_score({**own, "record": same}, 28_000)["estimate"] == own["accuracy"]
    assert own["accuracy"] > submission.expected_score({**own, "record": other}, 28_000)["estimate"] > 0.9961


def test_a_record_that_the_runs_own_rows_contradict_is_left_out(recorded):
    """Tables of the same size with other images in them."""
    own = {**OWN, "right": 9_500, "accuracy": 9_500 / 10_500, "record": recorded()[0]}
    expected = submission.expected_score(own, 28_000)
    assert expected["estimate"] == own["accuracy"] and "record is left out" in expected["rests_on"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": Estimate()}, "has no recorded accuracy"),
        ({"measured_with": {**MEASURED, "settings": "others"}}, "different settings"),
        (
            {"sizes": {"train_rows": 60_000, "test_rows": 10_000}},
            "this data set has 60,000 and 10,000",
        ),
        ({"training_rows": 21_000}, "requires at least 31,500 training rows"),
        ({"record": dataclasses.replace(RECORD, training_rows=33_600)}, "requires at least 33,600 training rows"),
        ({"mean": 72.9}, "not MNIST's: their mean pixel is 72.90"),
        ({"mean": 33.1}, "not MNIST's"),
    ],
)
def test_where_a_record_does_not_apply(recorded, changes, words):
    record, why = recorded(**changes)
    assert record is None and words in why


@pytest.mark.parametrize(
    ("fit_all", "folds", "rows"),
    [(True, None, 42_000), (False, None, 31_500), (False, np.arange(42_000) % 5, 33_600), (False, [0, 0, 0, 1, 1], 2)],
)
def test_rows_that_a_network_is_trained_on(fit_all, folds, rows):
    job = SimpleNamespace(manifests={"prepare": {"numbers": SIZES}})
    assert evaluate._training_rows(job, [{"fit_all": fit_all}], folds) == rows


@pytest.fixture
def with_record(command, finished):
    """`--stage all` with a record of the present settings and data; returns what it printed, and the receipt."""

    def call(*more):
        words = ("--stage", "all", *SHORT, *more, "--workspace", finished)
        assert command(*words).code == 0
        measured = json.loads((finished / "data/runs/quick/evaluate/metrics.json").read_text())["measured_with"]
        record = {"accuracy": 0.9, "deviation": 0.01, "seeds": 5, "rows": 100, "training_rows": 300, **measured}
        record["date"] = "2026-01-02"
        estimate = [word for name, one in record.items() for word in ("--set", f"estimate.{name}={json.dumps(one)}")]
        run = command(*words, *estimate)
        assert run.code == 0 and "train: fresh" in run.out
        return run.out, json.loads((finished / "submissions/quick/submission.json").read_text())

    return call


def test_small_tables_say_why_there_is_none(with_record):
    out, receipt = with_record("--set", "train.fit_all=true")
    assert receipt["expected_score"] is None
    assert "expected score: none, the recipe's recorded accuracy applies only to 42,000 training and 28,000 test" in out


@pytest.mark.parametrize("fit_all", [True, False])
def test_from_the_record_to_the_last_lines(with_record, finished, monkeypatch, fit_all):
    """With the small tables in the place of the competition's."""
    for name, value in (("TRAIN_ROWS", 400), ("TEST_ROWS", 100), ("DIGITS", 500)):
        monkeypatch.setattr(competition, name, value)
    images = np.load(finished / "data/prepared/arrays/train_images.npy")
    monkeypatch.setattr(competition, "MEAN_PIXEL", float(images.mean()) + 0.2)
    monkeypatch.setattr(metrics, "contradicts", lambda *arguments: False)
    out, receipt = with_record("--set", f"train.fit_all={str(fit_all).lower()}")
    record = 0.9, metrics.record_variance(100, 5, 400), True
    own = receipt["validation"]["accuracy"]
    if fit_all:
        estimate, interval = 0.9, metrics.recorded_score(record, 100, 500)
    else:
        estimate, interval, _ = metrics.combined_score((own, 100), record, 100, 400, 500)
    assert receipt["expected_score"]["estimate"] == pytest.approx(estimate)
    assert receipt["expected_score"]["interval_95"] == pytest.approx(list(interval))
    assert f"expected score {estimate:.4f} (95% of such scores: {interval[0]:.4f} to {interval[1]:.4f})" in out
    assert "the recipe's record of 2026-01-02: 0.9000, mean of 5 seeds" in out and "on the same data" in out
    assert ("two measurements" in out) != fit_all
