"""Stage train: its files, resuming after an interruption, training on all rows, recording, event files, progress."""

import csv
import io
import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from pipeline.nn.networks import load_networks
from pipeline.reports import training_figures
from pipeline.stages import train as stage
from pipeline.training import classifier, task
from pipeline.workflow import store
from tests.conftest import ENSEMBLE, TINY, digits_28

CALL = (*TINY, "--device", "cpu")
RECORD = ("--set", "train.record=true")


def train_files(workspace):
    """The content of the files of stage train that are the same in every run."""
    folder = workspace / "data/runs/quick/train"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}


def stop_after(monkeypatch, epoch):
    """Interrupt trainings after an epoch, like Ctrl-C."""
    fit = classifier.fit

    def fit_and_stop(network, training, validation, options, test, checkpoint, on_epoch):
        def stop(checkpoint):
            on_epoch(checkpoint)
            if checkpoint["epoch"] == epoch:
                raise KeyboardInterrupt

        return fit(network, training, validation, options, test, checkpoint, stop)

    monkeypatch.setattr(classifier, "fit", fit_and_stop)


def test_files(tiny):
    folder = tiny / "data/runs/quick/train"
    assert {path.name for path in folder.iterdir()} == {
        "weights.safetensors", "history.csv", "curves.png", "manifest.json", "context.json", store.WRITTEN,
    }  # fmt: skip
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert not any("time" in name or "second" in name for name in rows[0])
    (network,) = store.read_manifest(folder)[0]["numbers"]["networks"]
    assert network["precision"] in ("fp32", "bf16")
    assert float(rows[-1]["validation_accuracy"]) == network["validation_accuracy"]
    (loaded,) = load_networks(folder / "weights.safetensors", "cpu")
    assert loaded.metadata["precision"] == network["precision"] and loaded.metadata["epoch"] == 2


class TestResuming:
    @pytest.mark.parametrize(
        ("changes", "save_interval"), [((), 0), (("train.checkpoint_selection=best", "train.epochs=4"), 1000)]
    )
    def test_gives_the_same_files(self, command, tiny, monkeypatch, changes, save_interval):
        """The last epoch is saved too if epochs are shorter than the interval between two checkpoints."""
        call = (*CALL, *(word for change in changes for word in ("--set", change)), "--workspace", tiny)
        assert command("--stage", "train", *call).code == 0
        before = train_files(tiny)
        shutil.rmtree(tiny / "data/networks")
        monkeypatch.setattr(task, "MAX_SAVE_INTERVAL", save_interval)
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            stopped = command("--stage", "train", *call)
        assert stopped.code == 130 and "continues from there" in stopped.err
        assert train_files(tiny) == before
        resumed = command("--stage", "train", *call)
        assert "continuing after epoch 1" in resumed.out
        assert train_files(tiny) == before

    def test_a_damaged_checkpoint_is_an_error(self, command, tiny, monkeypatch):
        call = (*CALL, "--workspace", tiny)
        shutil.rmtree(tiny / "data/networks")
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            command("--stage", "train", *call)
        (checkpoint,) = tiny.glob("data/networks/*.partial/checkpoint.pt")
        checkpoint.write_bytes(b"garbage")
        run = command("--stage", "train", *call)
        assert run.code == 2 and run.err.count("\n") == 1 and "delete it" in run.err
        assert command("--stage", "train", *call, "--force").code == 0


class TestFitAll:
    CALL = (*CALL, "--set", "train.fit_all=true")

    @pytest.fixture
    def run(self, command, tiny):
        return command("--stage", "all", *self.CALL, "--workspace", tiny), tiny

    def test_trains_on_all_rows_and_evaluates_on_none(self, command, run):
        outcome, workspace = run
        assert outcome.code == 0, outcome.err
        images, labels = digits_28(500)
        (augmented,) = (
            folder for folder in (workspace / "data/augmented").iterdir() if len(np.load(folder / "labels.npy")) == 400
        )
        assert np.array_equal(np.load(augmented / "images.npy"), images[:400])
        assert np.array_equal(np.load(augmented / "labels.npy"), labels[:400])
        folder = workspace / "data/runs/quick"
        assert {path.name for path in (folder / "evaluate").iterdir()} == {
            "metrics.json", "manifest.json", "context.json", store.WRITTEN,
        }  # fmt: skip
        metrics = json.loads((folder / "evaluate/metrics.json").read_text())
        assert metrics["rows"] == 0 and metrics["accuracy"] is None and metrics["measured"] is None
        assert "validation" not in (folder / "train/history.csv").read_text()
        assert "validation_accuracy" not in store.read_manifest(folder / "train")[0]["numbers"]["networks"][0]
        receipt = json.loads((workspace / "submissions/quick/submission.json").read_text())
        assert receipt["expected_score"] is None and receipt["validation"]["accuracy"] is None
        assert "accuracy   none: trained on all rows" in outcome.out
        assert "expected   none: the recipe's accuracy was measured with other settings" in outcome.out
        assert receipt["message"] == "quick, no row held out"

        # Without the setting, the pictures are drawn again.
        outcome = command("--stage", "all", *CALL, "--workspace", workspace)
        assert "train.fit_all true -> false" in outcome.out
        assert (folder / "evaluate/confusion.png").exists()
        assert "accuracy   0." in outcome.out

    def test_excludes_the_selection_of_an_epoch(self, command, tmp_path):
        run = command(
            "--stage", "all", *self.CALL, "--set", "train.checkpoint_selection=best", "--workspace", tmp_path
        )  # fmt: skip
        assert run.code == 2 and run.err.count("\n") == 1 and "set train.checkpoint_selection to last" in run.err


class TestNetworkErrors:
    def test_layers_that_do_not_fit(self, command, tiny):
        layers = ("--set", "model.name=layers", "--set", 'model.layers=["max_pool 9", "max_pool 9"]')
        call = ("--recipe", "ladder/lenet", "--device", "cpu", *layers, "--workspace", tiny)
        run = command("--stage", "all", *call)
        assert run.code == 2 and run.err.count("\n") == 1 and "'max_pool 9' is larger than its input, 3x3" in run.err

    @pytest.mark.parametrize(("layers", "fits"), [(["dense 5", "batch_norm"], False), (["dense 5", "dropout"], True)])
    def test_batches_of_one_row(self, command, tiny, layers, fits):
        settings = ("train.batch_size=1", "train.epochs=1", "model.name=layers", f"model.layers={json.dumps(layers)}")
        call = ("--recipe", "ladder/lenet", "--device", "cpu", "--workspace", tiny)
        call += tuple(word for setting in settings for word in ("--set", setting))
        run = command("--stage", "train", *call)
        assert (run.code, run.err.count("\n")) == ((0, 0) if fits else (2, 1)), run.err
        if not fits:
            assert "train.batch_size is 1" in run.err
            run = command("--stage", "compare", *call, "--seeds", "1")
            assert run.code == 2 and "ladder/lenet: train.batch_size is 1" in run.err


class TestRecord:
    def test_changes_no_weights_and_makes_nothing_stale(self, command, tiny):
        call = (*CALL, "--workspace", tiny)
        weights = tiny / "data/runs/quick/train/weights.safetensors"
        record = weights.with_name("record.json")
        before = weights.read_bytes()
        assert not record.exists()
        assert "stale" not in command("--status", *call, *RECORD).out
        run = command("--stage", "train", *call, *RECORD)
        assert run.code == 0
        assert "train: layers-seed0 exists without its weights record; training it again" in run.out
        assert weights.read_bytes() == before
        rows = json.loads(record.read_text())["rows"]
        assert [row["epoch"] for row in rows] == [0, 1, 2] and len(rows[0]["layers"]) == 3
        assert "stale" not in command("--status", *call).out
        (network,) = tiny.glob("data/networks/*/manifest.json")
        trained = network.stat().st_mtime_ns
        assert command("--stage", "train", *call).code == 0
        assert weights.read_bytes() == before and not record.exists()
        assert network.stat().st_mtime_ns == trained

    def test_a_fresh_training_without_record_or_event_files_says_how_to_add_them(self, command, tiny):
        run = command("--stage", "all", *CALL, *RECORD, "--workspace", tiny)
        assert run.code == 0 and "train: fresh" in run.out
        assert "the training is fresh but lacks a record: run --stage train" in run.out
        run = command("--stage", "all", *CALL, "--tracker", "tensorboard", "--workspace", tiny)
        assert run.code == 0 and "lacks event files" in run.out

    def test_is_refused_by_compare(self, command, tmp_path):
        run = command("--stage", "compare", *CALL, *RECORD, "--workspace", tmp_path)
        assert run.code == 2 and "train.record" in run.err

    @pytest.mark.parametrize("setting", ["split.folds=2", "ensemble.seeds=2", 'ensemble.views=["even"]'])
    def test_is_refused_for_an_ensemble(self, command, tmp_path, setting):
        run = command("--stage", "all", *CALL, *RECORD, "--set", setting, "--workspace", tmp_path)
        assert run.code == 2 and "train.record" in run.err and "ensemble" in run.err


class TestEventFiles:
    @staticmethod
    def assert_equal(folder, history):
        """Compare what TensorBoard itself reads from a folder with a history."""
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = accumulator.EventAccumulator(str(folder))
        events.Reload()
        columns = {
            "learning_rate": "learning_rate",
            "train/loss": "train_loss",
            "validation/loss": "validation_loss",
            "validation/accuracy": "validation_accuracy",
        }
        assert set(events.Tags()["scalars"]) == set(columns)
        for tag, column in columns.items():
            assert [event.step for event in events.Scalars(tag)] == history.epoch.tolist()
            assert np.allclose([event.value for event in events.Scalars(tag)], history[column], rtol=1e-6)

    @pytest.mark.parametrize(
        ("workspace", "call", "trains"),
        [("tiny", CALL, True), ("tiny", CALL, False), ("ensemble", (*ENSEMBLE, "--device", "cpu"), True)],
    )
    def test_contain_the_history(self, command, request, workspace, call, trains):
        """Also of a network that exists already; in a folder per network if there are several."""
        pytest.importorskip("tensorboard")
        workspace = request.getfixturevalue(workspace)
        manifests = {path: path.stat().st_mtime_ns for path in workspace.glob("data/networks/*/manifest.json")}
        force = ("--force",) if trains else ()
        outcome = command("--stage", "train", *call, "--tracker", "tensorboard", "--workspace", workspace, *force)
        assert outcome.code == 0, outcome.err
        assert all((path.stat().st_mtime_ns != written) == trains for path, written in manifests.items())
        history = pd.read_csv(workspace / "data/runs/quick/train/history.csv")
        (folder,) = (workspace / "data/logs/tensorboard/quick").iterdir()
        assert str(folder) in outcome.out
        if len(manifests) == 1:
            self.assert_equal(folder, history)
            return
        assert {path.name for path in folder.iterdir()} == set(history.network)
        for path in folder.iterdir():
            self.assert_equal(path, history[history.network == path.name])

    def test_require_tensorboard_and_a_training(self, command, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        run = command("--stage", "all", *CALL, "--tracker", "tensorboard", "--workspace", tmp_path)
        assert run.code == 2 and "requirements/tensorboard.txt" in run.err
        with pytest.raises(SystemExit) as stop:
            command("--stage", "predict", *CALL, "--tracker", "tensorboard", "--workspace", tmp_path)
        assert stop.value.code == 2


class _Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    @pytest.mark.parametrize(("share", "expected"), [(1e9, [1, 2, 2]), (1e-9, [2])])
    def test_curves_are_drawn_after_each_epoch_if_that_is_cheap(self, command, tiny, monkeypatch, share, expected):
        lengths, curves = [], training_figures.curves

        def record_length(histories, *arguments):
            lengths.append(len(histories[0]))
            return curves(histories, *arguments)

        monkeypatch.setattr(stage, "DRAWING_SHARE", share)
        monkeypatch.setattr(training_figures, "curves", record_length)
        assert command("--stage", "train", *CALL, "--force", "--workspace", tiny).code == 0
        assert lengths == expected

    @pytest.mark.parametrize(("interval", "n_lines"), [(0, 2), (60, 0)])
    def test_lines_replace_the_bar_without_a_terminal(self, command, tiny, monkeypatch, interval, n_lines):
        monkeypatch.setattr("pipeline.training.ensure.SCREEN_INTERVAL", interval)
        run = command("--stage", "train", *CALL, "--force", "--workspace", tiny)
        assert sum("validation_accuracy 0." in line for line in run.lines()) == n_lines

    def test_the_bar_fits_80_columns(self, command, tiny, monkeypatch):
        """It shows epoch, losses, accuracy and remaining time."""
        monkeypatch.setattr(sys, "stderr", _Terminal())
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (80, 24))
        run = command("--stage", "train", *CALL, "--force", "--workspace", tiny)
        assert run.code == 0
        epochs = [
            line for line in run.lines() if re.fullmatch(r"train: epoch \d, .*, validation_accuracy 0.*, .* s", line)
        ]
        assert len(epochs) == 2  # they stay above the bar
        lines = sys.stderr.getvalue().replace("\n", "\r").split("\r")
        last = pd.read_csv(tiny / "data/runs/quick/train/history.csv").iloc[-1]
        line = [line.strip() for line in lines if "epoch 2/2" in line and "100%" in line and "val_acc" in line][-1]
        assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, ", line) and len(line) <= 80
        figures = {"val_acc": last.validation_accuracy, "loss": last.train_loss, "val_loss": last.validation_loss}
        assert all(f" {name} {value:.4f}" in line for name, value in figures.items())
