"""--data auto on Kaggle's machines: where the attached competition is, and where results are written."""

import os
import subprocess
import sys

import pytest

from pipeline.kaggle import machine
from pipeline.workflow import store
from tests.conftest import as_zip, write_tables
from tests.test_structure import ROOT


@pytest.fixture
def attached(monkeypatch, tmp_path):
    """An empty folder for attached data, as on Kaggle."""
    monkeypatch.setenv(machine.INPUT_VARIABLE, str(tmp_path / "input"))
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def download(command, tmp_path, *options):
    return command("--stage", "download", "--workspace", tmp_path / "working", *options)


@pytest.mark.parametrize("mount", ["competitions/digit-recognizer", "digit-recognizer", "datasets/somebody/mnist/copy"])
def test_finds_the_attached_competition(attached, command, tables, tmp_path, mount):
    write_tables(attached / mount, tables)
    (attached / "another").mkdir()
    (attached / "another/train.csv").write_text("a,b\n")
    (attached / "another/damaged.zip").write_bytes(b"PK")
    before = modification_times(attached)
    run = download(command, tmp_path)
    assert run.code == 0, run.err
    assert f"reading {attached / mount}" in run.out
    raw = tmp_path / "working/data/raw"
    assert all((raw / name).read_bytes() == content for name, content in tables.items())
    assert store.read_manifest(raw)[0]["numbers"]["source"] == "path"  # can be submitted
    assert modification_times(attached) == before
    # The attached folder is not needed again.
    assert "download  fresh" in command("--status", "--recipe", "quick", "--workspace", tmp_path / "working").out


def test_competition_takes_precedence_over_copies(attached, command, tables, tmp_path):
    write_tables(attached / "copy", tables)
    write_tables(attached / "digit-recognizer", tables)
    assert f"reading {attached / 'digit-recognizer'}" in download(command, tmp_path).out


def test_attached_zip(attached, command, tables, tmp_path):
    (attached / "data").mkdir()
    (attached / "data/digit-recognizer.zip").write_bytes(as_zip(tables))
    assert download(command, tmp_path).code == 0
    assert (tmp_path / "working/data/raw/digit-recognizer.zip").exists()


def test_nothing_attached_is_explained(attached, command, tmp_path):
    """Not the sample: a submission made from it could not be sent."""
    run = download(command, tmp_path)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "attach the competition" in run.err and "--data" in run.err


def test_two_copies_are_ambiguous(attached, command, tables, tmp_path):
    write_tables(attached / "a", tables)
    write_tables(attached / "b", tables)
    run = download(command, tmp_path)
    assert run.code == 2 and "choose one with --data" in run.err
    assert download(command, tmp_path, "--data", attached / "b").code == 0


def test_incomplete_competition_is_named(attached, command, tables, tmp_path):
    write_tables(attached / "digit-recognizer", {name: tables[name] for name in ("train.csv", "test.csv")})
    run = download(command, tmp_path)
    assert run.code == 2 and "sample_submission.csv not found" in run.err


def test_search_is_limited_in_depth(attached, command, tables, tmp_path):
    write_tables(attached / "1/2/3/4/5", tables)
    assert download(command, tmp_path).code == 2


def test_other_machines_have_no_such_folders(monkeypatch, tmp_path):
    for variable, function in (
        (machine.INPUT_VARIABLE, machine.input_root),
        (machine.WORKING_VARIABLE, machine.working_root),
    ):
        monkeypatch.setenv(variable, str(tmp_path / "missing"))
        assert function() is None


def test_results_are_written_to_the_working_folder(tables, tmp_path):
    """In a process of its own: the default workspace is chosen when the pipeline is imported."""
    write_tables(tmp_path / "input/digit-recognizer", tables)
    (tmp_path / "working").mkdir()
    folders = {
        machine.INPUT_VARIABLE: str(tmp_path / "input"),
        machine.WORKING_VARIABLE: str(tmp_path / "working"),
    }
    run = [sys.executable, "run_pipeline.py", "--stage", "download"]
    subprocess.run(run, cwd=ROOT, env=os.environ | folders, check=True, timeout=60, capture_output=True)
    assert (tmp_path / "working/data/raw/manifest.json").exists()
