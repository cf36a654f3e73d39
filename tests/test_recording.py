"""What a training shows of itself: recorded weights and gradients, event files, curves, the progress bar."""

import copy
import io
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import training
from pipeline.models import make
from pipeline.pictures import training as pictures
from pipeline.recipe import load
from pipeline.recording import BINS, Recorder
from pipeline.settings import Affine
from pipeline.stages import train as stage
from tests.conftest import SHORT, digits_28, write_tables

IMAGES, LABELS = digits_28(120)
X, Y = torch.from_numpy(IMAGES), torch.from_numpy(LABELS.astype(np.int64))
WORDS = (*SHORT, "--device", "cpu")
RECORD = ("--set", "train.record=true")


def test_gradients_and_histograms_are_a_plain_computation():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    recorder, means, highest = Recorder(network), {"0.weight": [], "2.weight": []}, {"0.weight": [], "2.weight": []}
    assert recorder.row(0)["layers"]["0.weight"]["gradient_mean"] is None
    for _ in range(3):
        network.zero_grad()
        network(torch.randn(4, 7)).square().sum().backward()
        recorder.step()
        for name, weight in network.named_parameters():
            if name in means:
                flat = [abs(value) for line in weight.grad.tolist() for value in line]
                means[name].append(sum(flat) / len(flat))
                highest[name].append(max(flat))
    row = json.loads(json.dumps(recorder.row(1)))
    assert row["epoch"] == 1 and list(row["layers"]) == ["0.weight", "2.weight"]
    for name, found in row["layers"].items():
        assert found["gradient_mean"] == pytest.approx(sum(means[name]) / 3, rel=1e-5)
        assert found["gradient_max"] == pytest.approx(max(highest[name]), rel=1e-6)
        values = network.state_dict()[name].double().numpy().ravel()
        assert found["limit"] == np.abs(values).max()
        expected, _ = np.histogram(values, BINS, (-found["limit"], found["limit"]))
        assert found["counts"] == expected.tolist()
    assert recorder.row(2)["layers"]["0.weight"]["gradient_mean"] is None  # a new count begins


def fit(record, checkpoint=None, **changes):
    """Four epochs of LeNet on 120 digits: the state, the record, and the checkpoints."""
    words = {"epochs": 4, "batch": 32, "record": json.dumps(record), **changes}
    made, seen = load("ladder/lenet", [f"train.{name}={value}" for name, value in words.items()]), []
    training.seed_everything(0)
    network = make(made.model)
    parts = (X, Y), None, made.train, Affine(), "cpu", "fp32", checkpoint, lambda one: seen.append(copy.deepcopy(one))
    state, _, _, rows = training.fit(network, *parts, False)
    return state, rows, seen


def test_looking_changes_nothing():
    plain, nothing, _ = fit(False)
    watched, rows, _ = fit(True)
    assert nothing == [] and [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(torch.equal(plain[name], tensor) for name, tensor in watched.items())


def test_gone_on_with_the_record_is_whole():
    _, whole, seen = fit(True)
    _, rows, _ = fit(True, seen[1])
    assert rows == whole
    del seen[1]["record"], seen[1]["recorder"]  # a checkpoint of an earlier version
    assert [row["epoch"] for row in fit(True, seen[1])[1]] == [3, 4]


def test_gone_on_with_between_two_rows_the_record_is_whole(monkeypatch):
    monkeypatch.setattr(training, "ROWS", 3)
    _, whole, seen = fit(True, epochs=8)
    for checkpoint in seen[:-1]:
        assert fit(True, checkpoint, epochs=8)[1] == whole


def test_gone_on_with_otherwise_no_part_is_taken_for_the_whole():
    _, _, seen = fit(True)
    assert fit(False, seen[1])[1] == []
    _, _, plain = fit(False)
    assert [row["epoch"] for row in fit(True, plain[1])[1]] == [3, 4]


def test_long_trainings_keep_some_rows_and_long_epochs_look_at_some_batches(monkeypatch):
    monkeypatch.setattr(training, "ROWS", 3)
    assert [row["epoch"] for row in fit(True, epochs=8)[1]] == [0, 3, 6, 8]
    steps = []
    monkeypatch.setattr(Recorder, "step", lambda self: steps.append(len(steps)))
    monkeypatch.setattr(Recorder, "row", lambda self, epoch: {})
    fit(True, epochs=2, batch=8)
    assert len(steps) == 2 * 15
    monkeypatch.setattr(training, "BATCHES", 5)
    steps.clear()
    fit(True, epochs=2, batch=8)
    assert len(steps) == 2 * 5


def test_it_is_recorded_when_asked_for_and_makes_nothing_stale(command, finished):
    weights = finished / "data/runs/quick/train/weights.safetensors"
    record = weights.with_name("record.json")
    before = weights.read_bytes()
    assert not record.exists()
    run = command("--status", *WORDS, *RECORD, "--workspace", finished)
    assert "stale" not in run.out
    assert command("--stage", "train", *WORDS, *RECORD, "--workspace", finished).code == 0
    assert weights.read_bytes() == before
    rows = json.loads(record.read_text())["rows"]
    assert [row["epoch"] for row in rows] == [0, 1, 2] and len(rows[0]["layers"]) == 5
    assert "stale" not in command("--status", *WORDS, "--workspace", finished).out
    assert command("--stage", "train", *WORDS, "--workspace", finished).code == 0
    assert weights.read_bytes() == before and not record.exists()


def test_asked_for_where_the_training_is_there_it_says_how(command, finished):
    run = command("--stage", "all", *WORDS, *RECORD, "--workspace", finished)
    assert run.code == 0 and "train: fresh" in run.out
    assert "was not recorded" in run.out and "--stage train" in run.out
    run = command("--stage", "all", *WORDS, "--tracker", "tensorboard", "--workspace", finished)
    assert run.code == 0 and "was not tracked" in run.out


def test_compare_refuses_what_it_would_not_show(command, finished):
    run = command("--stage", "compare", *WORDS, *RECORD, "--workspace", finished)
    assert run.code == 2 and "train.record" in run.err


@pytest.mark.parametrize("setting", ["split.folds=2", "ensemble.seeds=2", 'ensemble.views=["even"]'])
def test_an_ensemble_is_not_recorded_and_says_so(command, tmp_path, setting):
    run = command("--stage", "all", *WORDS, *RECORD, "--set", setting, "--workspace", tmp_path)
    assert run.code == 2 and "train.record" in run.err and "ensemble" in run.err


def scalars(folder):
    """What TensorBoard itself reads from a folder: by tag, steps and values."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(history):
    columns = {
        "learning_rate": "learning_rate",
        "train/loss": "train_loss",
        "validation/loss": "validation_loss",
        "validation/accuracy": "validation_accuracy",
    }
    return {tag: list(zip(history.epoch, history[name], strict=True)) for tag, name in columns.items()}


def assert_same(found, history):
    wanted = expected(history)
    assert found.keys() == wanted.keys()
    for tag, pairs in wanted.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in pairs]
        assert np.allclose([value for _, value in found[tag]], [value for _, value in pairs], rtol=1e-6)


def test_event_files_hold_the_history(command, tmp_path, tables):
    pytest.importorskip("tensorboard")
    write_tables(tmp_path / "data/raw", tables)
    run = command("--stage", "all", *WORDS, "--tracker", "tensorboard", "--workspace", tmp_path)
    assert run.code == 0
    (folder,) = (tmp_path / "data/logs/tensorboard/quick").iterdir()
    assert str(folder) in run.out
    assert_same(scalars(folder), pd.read_csv(tmp_path / "data/runs/quick/train/history.csv"))


def test_event_files_of_an_ensemble_are_one_a_network(command, tmp_path, tables):
    pytest.importorskip("tensorboard")
    write_tables(tmp_path / "data/raw", tables)
    words = (*WORDS, "--set", "split.folds=2", "--tracker", "tensorboard", "--workspace", tmp_path)
    assert command("--stage", "all", *words).code == 0
    history = pd.read_csv(tmp_path / "data/runs/quick/train/history.csv")
    (run,) = (tmp_path / "data/logs/tensorboard/quick").iterdir()
    assert {path.name for path in run.iterdir()} == set(history.member)
    for folder in run.iterdir():
        assert_same(scalars(folder), history[history.member == folder.name])


def test_a_tracker_that_is_not_there_or_has_nothing_to_show(command, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = command("--stage", "all", *WORDS, "--tracker", "tensorboard", "--workspace", tmp_path)
    assert run.code == 2 and "requirements/tensorboard.txt" in run.err
    with pytest.raises(SystemExit) as stop:
        command("--stage", "predict", *WORDS, "--tracker", "tensorboard", "--workspace", tmp_path)
    assert stop.value.code == 2


@pytest.mark.parametrize("share, drawn", [(1e9, 3), (0, 2)])
def test_curves_are_drawn_after_each_epoch_where_that_is_cheap(command, finished, monkeypatch, share, drawn):
    lengths, draw = [], pictures.curves
    monkeypatch.setattr(stage, "DRAWING", share)
    monkeypatch.setattr(pictures, "curves", lambda *given: lengths.append(len(given[0][0])) or draw(*given))
    assert command("--stage", "train", *WORDS, "--force", "--workspace", finished).code == 0
    assert len(lengths) == drawn and lengths[0] == 1 and lengths[-1] == 2


class Screen(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self):
        return True


def test_the_bar_tells_epoch_losses_accuracy_and_time_left_on_80_columns(command, finished, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (80, 24))
    assert command("--stage", "train", *WORDS, "--force", "--workspace", finished).code == 0
    lines = sys.stderr.getvalue().replace("\n", "\r").split("\r")
    last = pd.read_csv(finished / "data/runs/quick/train/history.csv").iloc[-1]
    line = [line.strip() for line in lines if "epoch 2/2" in line and "100%" in line and "val_acc" in line][-1]
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, ", line) and len(line) <= 80
    figures = {"val_acc": last.validation_accuracy, "loss": last.train_loss, "val_loss": last.validation_loss}
    assert all(f" {name} {value:.4f}" in line for name, value in figures.items())
