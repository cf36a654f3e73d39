"""Event files: what TensorBoard itself reads back, during a training and after a killed process."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import StageError
from pipeline.reports.event_files import EventWriter, require_tensorboard

HISTORY = [
    {"epoch": epoch, "train_loss": 1 / epoch, "validation_loss": 2.0, "validation_accuracy": 0.9, "learning_rate": 0.1}
    for epoch in (1, 2, 3)
]


def read_scalars(folder):
    """By tag, (step, value) of each event in a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_each_row_is_written_once_and_readable_at_once(tmp_path):
    pytest.importorskip("tensorboard")
    writer = EventWriter(tmp_path)
    for n_rows in (1, 2, 2, 3):
        writer.write(HISTORY[:n_rows])
        scalars = read_scalars(tmp_path)
        assert scalars.keys() == {"train/loss", "validation/loss", "validation/accuracy", "learning_rate"}
        assert scalars["train/loss"] == [(row["epoch"], pytest.approx(row["train_loss"])) for row in HISTORY[:n_rows]]
        assert all(len(events) == n_rows for events in scalars.values())


def test_each_network_has_its_own_folder(tmp_path):
    pytest.importorskip("tensorboard")
    writer = EventWriter(tmp_path)
    writer.write(HISTORY[:2], "small_cnn-seed0")
    writer.write(HISTORY[:1], "small_cnn-seed1")
    writer.write(HISTORY, "small_cnn-seed0")
    assert {path.name for path in tmp_path.iterdir()} == {"small_cnn-seed0", "small_cnn-seed1"}
    assert [step for step, _ in read_scalars(tmp_path / "small_cnn-seed0")["train/loss"]] == [1, 2, 3]
    assert [step for step, _ in read_scalars(tmp_path / "small_cnn-seed1")["train/loss"]] == [1]


def test_nothing_is_created_without_rows(tmp_path):
    EventWriter(tmp_path / "run").write([])
    assert not (tmp_path / "run").exists()


def test_events_survive_a_killed_process(tmp_path):
    pytest.importorskip("tensorboard")
    script = (
        "import os, pathlib, signal, sys\nfrom pipeline.reports.event_files import EventWriter\n"
        f"EventWriter(pathlib.Path(sys.argv[1])).write({HISTORY[:2]})\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60)
    assert [step for step, _ in read_scalars(tmp_path)["validation/accuracy"]] == [1, 2]


def test_a_missing_tensorboard_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StageError, match=r"pip install -r requirements/tensorboard.txt"):
        require_tensorboard(Path("workspace"))
