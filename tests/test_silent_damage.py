"""Files in which a bit changes without a trace: size, time and inode stay, as after a fault of the disk.

`--status` does not notice, since it must be fast; nothing else takes such a file for what it was.
"""

import os
from pathlib import Path

import pytest

from pipeline.stages import evaluate
from pipeline.workflow import publishing
from tests.conftest import ALL_FRESH, TINY, ran, write_tables
from tests.damage import flip, list_outputs, record_fingerprints
from tests.interference import interrupt


@pytest.fixture(autouse=True)
def recorded(tiny):
    record_fingerprints(tiny)


def find_network(workspace):
    (path,) = workspace.glob("data/networks/*/weights.safetensors")
    return path


def test_all_makes_again_whatever_is_damaged(stage, status, tiny):
    """With the same content."""
    listed = list_outputs(tiny)
    del listed[tiny / "data/raw"]
    paths = {Path(os.path.realpath(path)) for outputs in listed.values() for path in outputs}
    assert len(paths) > 15
    before = {path: path.read_bytes() for path in paths}
    for path in paths:
        flip(path)
    assert status() == ALL_FRESH
    run = stage("all")
    assert run.code == 0 and ran(run) == ["prepare", "augment", "train", "evaluate", "predict"]
    assert {path: path.read_bytes() for path in paths} == before


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("data/prepared/arrays/train_images.npy", "prepare"),
        ("data/augmented/*/images.npy", "augment"),
        ("data/runs/quick/train/weights.safetensors", "train"),
        ("data/runs/quick/evaluate/metrics.json", "evaluate"),
        ("submissions/quick/submission.csv", "predict"),
    ],
)
def test_all_runs_only_the_stage_whose_result_is_damaged(stage, status, tiny, file, name):
    (path,) = tiny.glob(file)
    good = path.read_bytes()
    flip(path)
    assert status() == ALL_FRESH
    run = stage("all")
    assert run.code == 0 and ran(run) == [name]
    assert f"{name}: running, {path.name} was changed after it was written" in run.out
    assert path.read_bytes() == good


def test_damaged_arrays_are_not_used_for_another_split(stage, tiny):
    path = tiny / "data/prepared/arrays/train_images.npy"
    good = path.read_bytes()
    flip(path)
    assert stage("prepare", "--set", "split.seed=1").code == 0
    assert path.read_bytes() == good


def test_a_damaged_network_is_trained_again(stage, tiny):
    path, collected = find_network(tiny), tiny / "data/runs/quick/train/weights.safetensors"
    good, good_collected = path.read_bytes(), collected.read_bytes()
    flip(path)
    assert stage("train").code == 0
    assert (path.read_bytes(), collected.read_bytes()) == (good, good_collected)


def test_a_damaged_result_that_was_not_published_yet_is_made_again(stage, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "publish", interrupt)
        assert stage("evaluate").code == 130
    good = (tiny / "data/runs/quick/evaluate/probabilities.npy").read_bytes()
    flip(tiny / "data/runs/quick/evaluate.partial/probabilities.npy")
    runs, run = [], evaluate.run
    monkeypatch.setattr(evaluate, "run", lambda context: runs.append(context) or run(context))
    assert stage("evaluate").code == 0 and len(runs) == 1
    assert (tiny / "data/runs/quick/evaluate/probabilities.npy").read_bytes() == good


def test_a_damaged_network_that_was_not_published_yet_is_trained_again(stage, tiny, monkeypatch):
    path = find_network(tiny)
    good = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "publish", interrupt)
        assert stage("train", "--force").code == 130
    flip(path.parent.with_name(f"{path.parent.name}.partial") / path.name)
    run = stage("train")
    assert run.code == 0 and "continuing after epoch" in run.out  # the damaged network did not replace the earlier one
    assert path.read_bytes() == good


def test_damaged_downloads_are_fetched_again(stage, tiny, tables, tmp_path, command):
    folder, workspace = write_tables(tmp_path / "tables", tables), tmp_path / "other"
    download = ("--stage", "download", *TINY, "--workspace", workspace)
    assert command(*download, "--data", folder).code == 0
    for options in ((), ("--force",)):
        flip(workspace / "data/raw/train.csv")
        assert command(*download, *options).code == 0
        assert (workspace / "data/raw/train.csv").read_bytes() == tables["train.csv"]


@pytest.mark.parametrize("options", [("all",), ("download", "--force")])
def test_damaged_tables_of_the_user_are_named(stage, status, tiny, tables, options):
    path = tiny / "data/raw/train.csv"
    flip(path)
    damaged = path.read_bytes()
    assert status() == ALL_FRESH
    run = stage(*options)
    assert run.code == 2 and f"{path}: its content changed, but not its size and time" in run.err
    assert path.read_bytes() == damaged and status() == ALL_FRESH
    os.utime(path)  # the user has saved it again
    assert stage("download").code == 0
    assert "prepare: running, download/train.csv changed" in stage("all").out
