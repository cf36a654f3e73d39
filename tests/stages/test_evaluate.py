"""evaluate: figures against plain computations, each row predicted by the networks that were not trained on it."""

import csv
import json
import shutil

import numpy as np
import pytest

from pipeline.kaggle import competition
from pipeline.metrics import classification
from pipeline.nn.networks import load_networks
from pipeline.recipes import config
from pipeline.recipes.settings import Predict
from pipeline.stages import evaluate
from pipeline.training.held_out import TrainingRows, predict_held_out
from tests import oracles
from tests.conftest import TINY, digits_28, run_all
from tests.contexts import make_context

IMAGES, LABELS = digits_28(500)
IMAGES, LABELS = IMAGES[:400], LABELS[:400]
# A single network on a validation split, in float32.
SINGLE = (*TINY, "--set", "train.precision=fp32")
PICTURES = ("confusion.png", "errors.png", "suspects.png")


def read_results(workspace):
    """metrics.json, probabilities.npy and rows.npy of `quick`."""
    folder = workspace / "data/runs/quick/evaluate"
    arrays = [np.load(folder / name) for name in ("probabilities.npy", "rows.npy")]
    return json.loads((folder / "metrics.json").read_text()), *arrays


def predict_each(workspace, images):
    return oracles.predict_each(workspace / "data/runs/quick/train/weights.safetensors", images)


@pytest.fixture(scope="module")
def _single(tmp_path_factory, tables):
    return run_all(tmp_path_factory.mktemp("single"), tables, SINGLE)


@pytest.fixture
def single(_single, tmp_path):
    """A workspace of one's own in which `--stage all` with SINGLE has run."""
    return shutil.copytree(_single, tmp_path / "single")


class TestSingleNetwork:
    def test_metrics(self, _single):
        numbers, probabilities, rows = read_results(_single)
        assert np.array_equal(rows, np.load(next(_single.glob("data/prepared/splits/*/validation_rows.npy"))))
        ((expected, _),), labels = predict_each(_single, IMAGES[rows]), LABELS[rows]
        assert probabilities == pytest.approx(expected, abs=1e-4)
        n_correct = int((expected.argmax(1) == labels).sum())
        assert (numbers["rows"], numbers["n_correct"], numbers["accuracy"]) == (100, n_correct, n_correct / 100)
        assert numbers["interval_95"] == list(classification.wilson_interval(n_correct, 100))
        loss = -np.log(expected[np.arange(100), labels]).mean()
        assert numbers["loss"] == pytest.approx(loss, rel=1e-4)
        predictions = expected.argmax(1)
        for digit, row in enumerate(numbers["classes"]):
            is_digit, is_predicted = labels == digit, predictions == digit
            correct = int((is_digit & is_predicted).sum())
            precision = correct / is_predicted.sum() if is_predicted.any() else None
            recall = correct / is_digit.sum() if is_digit.any() else None
            assert row == {"digit": digit, "rows": is_digit.sum(), "precision": precision, "recall": recall}
        assert numbers["rests_on"] == "100 validation rows" and "networks" not in numbers
        with open(_single / "data/runs/quick/train/history.csv") as file:
            last = list(csv.DictReader(file))[-1]
        assert float(last["validation_accuracy"]) == pytest.approx(numbers["accuracy"])
        assert float(last["validation_loss"]) == pytest.approx(loss, rel=1e-4)

    def test_suspects_are_the_labels_with_the_lowest_probability(self, _single):
        _, _, rows = read_results(_single)
        ((expected, _),) = predict_each(_single, IMAGES)
        folder = _single / "data/runs/quick/evaluate"
        with open(folder / "suspects.csv") as file:
            suspects = list(csv.DictReader(file))
        assert {int(suspect["row"]) - 1 for suspect in suspects} == set(rows.tolist())
        for suspect in suspects:
            row = int(suspect["row"]) - 1
            assert int(suspect["label"]) == LABELS[row]
            assert float(suspect["label_probability"]) == pytest.approx(expected[row, LABELS[row]], abs=1e-4)
            assert int(suspect["prediction"]) == expected[row].argmax()
        probabilities = [float(suspect["label_probability"]) for suspect in suspects]
        assert probabilities == sorted(probabilities)
        for name in PICTURES:
            assert (folder / name).read_bytes().startswith(b"\x89PNG")

    @pytest.mark.usefixtures("without_pictures")
    def test_an_epoch_that_was_chosen_on_these_rows_is_mentioned(self, single, command):
        arguments = ("--stage", "all", *SINGLE, "--workspace", single, "--device", "cpu")
        assert "the epoch was chosen" not in command(*arguments).out
        run = command(*arguments, "--set", "train.checkpoint_selection=best")
        assert "the epoch was chosen on these rows" in run.out
        numbers, _, _ = read_results(single)
        assert numbers["chosen_on_these_rows"] is True


class TestEnsembles:
    def test_out_of_fold_figures(self, _ensemble):
        """Two folds and two seeds: each row is predicted by the two networks that did not see it."""
        folds = np.load(next(_ensemble.glob("data/prepared/splits/*/folds.npy")))
        each, expected = predict_each(_ensemble, IMAGES), np.zeros((400, 10))
        for fold in (0, 1):
            selected = [probabilities for probabilities, metadata in each if metadata["fold"] == fold]
            assert len(selected) == 2
            expected[folds == fold] = np.mean(selected, axis=0)[folds == fold]
        numbers, probabilities, rows = read_results(_ensemble)
        assert np.array_equal(rows, np.arange(400))
        assert probabilities == pytest.approx(expected, abs=1e-4)
        correct = expected.argmax(1) == LABELS
        assert (numbers["rows"], numbers["n_correct"], numbers["networks"]) == (400, correct.sum(), 4)
        assert numbers["interval_95"] == list(classification.wilson_interval(int(correct.sum()), 400))
        by_fold = [correct[folds == fold].mean() for fold in (0, 1)]
        assert numbers["folds"]["each"] == by_fold
        assert numbers["folds"]["mean"] == np.mean(by_fold)
        assert numbers["folds"]["std"] == pytest.approx(abs(by_fold[0] - by_fold[1]) / 2**0.5)
        by_network = [
            (probabilities.argmax(1) == LABELS)[folds == metadata["fold"]].mean() for probabilities, metadata in each
        ]
        assert numbers["network_accuracy"]["each"] == by_network
        folder = _ensemble / "data/runs/quick/evaluate"
        with open(folder / "suspects.csv") as file:
            assert int(next(csv.DictReader(file))["row"]) == expected[np.arange(400), LABELS].argmin() + 1
        for name in PICTURES:
            assert (folder / name).read_bytes().startswith(b"\x89PNG")

    @pytest.mark.usefixtures("without_pictures")
    def test_seeds_without_folds_are_measured_on_the_validation_rows(self, single, command):
        """The network that the recipe had before is one of them."""
        arguments = (*SINGLE, "--set", "ensemble.seeds=2", "--workspace", single, "--device", "cpu")
        run = command("--stage", "all", *arguments)
        assert run.code == 0 and "train: 1 of 2 networks exist already" in run.out
        numbers, probabilities, rows = read_results(single)
        each = [probabilities for probabilities, _ in predict_each(single, IMAGES[rows])]
        expected = np.mean(each, axis=0)
        assert len(each) == 2 and len(rows) == 100
        assert probabilities == pytest.approx(expected, abs=1e-4)
        assert numbers["accuracy"] == (expected.argmax(1) == LABELS[rows]).mean()
        assert numbers["networks"] == 2 and "folds" not in numbers
        assert numbers["network_accuracy"]["each"] == [(item.argmax(1) == LABELS[rows]).mean() for item in each]

    def test_a_row_is_predicted_by_the_networks_that_did_not_see_it(self, _ensemble):
        """Of three networks, one trained on all rows, and two that hold out a part: a row may have no prediction."""
        loaded = load_networks(_ensemble / "data/runs/quick/train/weights.safetensors", "cpu")[:3]
        for item, metadata in zip(loaded, ({"fit_all": True}, {"fold": 0}, {"fold": 2}), strict=True):
            item.metadata |= metadata
        folds = (np.arange(400) % 3).astype(np.uint8)
        rows = TrainingRows(IMAGES, LABELS, np.arange(400), folds)
        held_out = predict_held_out(loaded, rows, Predict(), "cpu")
        assert np.array_equal(held_out.n_networks, folds != 1)
        assert not held_out.probabilities[folds == 1].any()
        for item, fold in zip(loaded[1:], (0, 2), strict=True):
            expected = oracles.predict(item.network, IMAGES[folds == fold])
            assert held_out.probabilities[folds == fold] == pytest.approx(expected, abs=1e-4)
        assert len(held_out.accuracies) == 2 and len(held_out.metadata) == 3


@pytest.mark.parametrize(("n_folds", "reason"), [(5, ""), (2, "requires at least 31,500 training rows")])
def test_a_record_requires_as_many_training_rows_in_each_fold(tmp_path, n_folds, reason):
    arrays = {
        "folds": (np.arange(competition.TRAIN_ROWS) % n_folds).astype(np.uint8),
        "train_images": np.resize(np.array([33, 33, 34], np.uint8), (1, 28, 28)),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    recipe = config.load_recipe("quick")
    sizes = {"train_rows": competition.TRAIN_ROWS, "test_rows": competition.TEST_ROWS, "training_rows": 42_000}
    files = {f"prepare/{name}.npy": tmp_path / f"{name}.npy" for name in arrays}
    context = make_context(recipe, files, manifests={"prepare": {"numbers": sizes}})
    message = evaluate._why_not_measured(context, [{"fit_all": False}])
    assert reason in message and bool(reason) == bool(message)
