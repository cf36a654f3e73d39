"""Recorder: weight histograms and gradients against plain computations, and recording across an interruption."""

import copy
import json

import numpy as np
import pytest
import torch

from pipeline.nn import trainer
from pipeline.nn.networks import make_network
from pipeline.nn.recorder import BINS, Recorder
from pipeline.nn.trainer import FitOptions, LabelledImages
from pipeline.recipes.config import load_recipe
from pipeline.recipes.settings import Affine
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(120)
TRAINING = LabelledImages(torch.from_numpy(IMAGES), torch.from_numpy(LABELS.astype(np.int64)))


def fit(record, checkpoint=None, epochs=4, batch_size=32):
    """Train LeNet on 120 digits; returns the result and the checkpoints."""
    changes = {"epochs": epochs, "batch_size": batch_size, "precision": "fp32", "record": json.dumps(record)}
    recipe = load_recipe("ladder/lenet", [f"train.{name}={value}" for name, value in changes.items()])
    trainer.seed_everything(0)
    options, checkpoints = FitOptions(recipe.train, Affine(), "cpu", progress_bar=False), []
    result = trainer.fit(
        make_network(recipe.model), TRAINING, TRAINING, options, checkpoint=copy.deepcopy(checkpoint),
        on_epoch=lambda checkpoint: checkpoints.append(copy.deepcopy(checkpoint)),
    )  # fmt: skip
    return result, checkpoints


@pytest.fixture(scope="module")
def recorded():
    return fit(True)


@pytest.fixture(scope="module")
def unrecorded():
    return fit(False)


def epochs(record):
    return [row["epoch"] for row in record]


def test_gradients_and_histograms():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    recorder = Recorder(network)
    means, maxima = {"0.weight": [], "2.weight": []}, {"0.weight": [], "2.weight": []}
    assert recorder.row(0)["layers"]["0.weight"]["gradient_mean"] is None
    for _ in range(3):
        network.zero_grad()
        network(torch.randn(4, 7)).square().sum().backward()
        recorder.add_gradients()
        for name, weight in network.named_parameters():
            if name in means:
                values = [abs(value) for line in weight.grad.tolist() for value in line]
                means[name].append(sum(values) / len(values))
                maxima[name].append(max(values))
    row = json.loads(json.dumps(recorder.row(1)))
    assert row["epoch"] == 1 and list(row["layers"]) == ["0.weight", "2.weight"]
    for name, layer in row["layers"].items():
        assert layer["gradient_mean"] == pytest.approx(sum(means[name]) / 3, rel=1e-5)
        assert layer["gradient_max"] == pytest.approx(max(maxima[name]), rel=1e-6)
        values = network.state_dict()[name].double().numpy().ravel()
        assert layer["limit"] == np.abs(values).max()
        counts, _ = np.histogram(values, BINS, (-layer["limit"], layer["limit"]))
        assert layer["counts"] == counts.tolist()
    assert recorder.row(2)["layers"]["0.weight"]["gradient_mean"] is None  # a row starts new sums


def test_recording_does_not_change_the_weights(recorded, unrecorded):
    (result, _), (plain, _) = recorded, unrecorded
    assert plain.record == [] and epochs(result.record) == [0, 1, 2, 3, 4]
    assert result.history == plain.history
    assert all(torch.equal(plain.state_dict[name], tensor) for name, tensor in result.state_dict.items())


def test_the_record_of_a_resumed_training_is_complete(recorded):
    result, checkpoints = recorded
    assert fit(True, checkpoints[1])[0].record == result.record


def test_the_record_of_a_training_resumed_between_two_rows_is_complete(monkeypatch):
    monkeypatch.setattr(trainer, "RECORDED_EPOCHS", 3)
    result, checkpoints = fit(True, epochs=8, batch_size=64)
    assert epochs(result.record) == [0, 3, 6, 8]
    for checkpoint in checkpoints[:-1]:
        assert fit(True, checkpoint, epochs=8, batch_size=64)[0].record == result.record


def test_switching_the_record_on_or_off_when_resuming(recorded, unrecorded):
    assert fit(False, recorded[1][1])[0].record == []
    assert epochs(fit(True, unrecorded[1][1])[0].record) == [3, 4]


def test_only_a_part_of_the_batches_of_a_long_epoch_is_recorded(monkeypatch):
    calls = []
    monkeypatch.setattr(Recorder, "add_gradients", lambda self: calls.append(self))
    monkeypatch.setattr(Recorder, "row", lambda self, epoch: {})
    fit(True, epochs=2, batch_size=8)
    assert len(calls) == 2 * 15
    monkeypatch.setattr(trainer, "RECORDED_BATCHES", 5)
    calls.clear()
    fit(True, epochs=2, batch_size=8)
    assert len(calls) == 2 * 5
