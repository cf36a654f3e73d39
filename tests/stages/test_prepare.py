"""prepare: one line for an error in a table, the overlap check, and arrays that all splits share."""

import gzip

import numpy as np
import pytest

from pipeline.dataset import tables as tables_module
from tests.conftest import digits_28, write_tables


@pytest.fixture
def prepare(command, tmp_path):
    """`--stage download` and `--stage prepare` on the user's tables."""

    def run(tables, *options):
        write_tables(tmp_path / "data/raw", tables)
        workspace = ("--recipe", "quick", "--workspace", tmp_path)
        assert command("--stage", "download", *workspace).code == 0
        return command("--stage", "prepare", *workspace, *options)

    return run


def load_results(workspace):
    (split,) = (workspace / "data/prepared/splits").iterdir()
    paths = [*split.glob("*.npy"), *(workspace / "data/prepared/arrays").glob("*.npy")]
    return {path.name: np.load(path) for path in paths}


def test_arrays_and_rows(prepare, tables, tmp_path):
    assert prepare(tables).code == 0
    images, labels = digits_28(500)
    results = load_results(tmp_path)
    assert np.array_equal(results["train_images.npy"], images[:400])
    assert np.array_equal(results["train_labels.npy"], labels[:400])
    assert np.array_equal(results["test_images.npy"], images[400:])
    assert sorted([*results["train_rows.npy"], *results["validation_rows.npy"]]) == list(range(400))
    assert "folds.npy" not in results


def test_folds(prepare, tables, tmp_path):
    assert prepare(tables, "--set", "split.folds=3").code == 0
    results = load_results(tmp_path)
    assert np.bincount(results["folds.npy"]).min() > 130
    assert np.array_equal(results["train_rows.npy"], range(400))
    assert np.array_equal(results["validation_rows.npy"], range(400))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train.csv", lambda content: content.replace(b"\n5,", b"\nx,", 1), "column label is 'x'"),
        ("test.csv", lambda content: content[:-700], "row 100 (line 101) has"),
        ("sample_submission.csv", lambda content: content.replace(b"\n7,", b"\n8,"), "row 7 (line 8), column ImageId"),
    ],
)
def test_error_in_a_table_is_one_line_and_publishes_nothing(prepare, tables, tmp_path, name, change, message):
    run = prepare({**tables, name: change(tables[name])})
    assert run.code == 2
    assert run.err.startswith("error: ") and run.err.count("\n") == 1
    assert message in run.err and name in run.err
    assert not [*(tmp_path / "data/prepared").rglob("manifest.json")]


def test_tables_that_change_while_they_are_read_are_not_published(prepare, tables, tmp_path, monkeypatch):
    read, path = tables_module.read_train_table, tmp_path / "data/raw/train.csv"

    def change_and_read(file):
        path.write_bytes(path.read_bytes().replace(b",0,0,", b",0,1,", 1))
        return read(file)

    monkeypatch.setattr(tables_module, "read_train_table", change_and_read)
    run = prepare(tables)
    assert run.code == 1 and f"{path} changed while prepare ran" in run.err
    assert not [*(tmp_path / "data/prepared").rglob("manifest.json")]


def test_damaged_gzip(prepare, tables):
    compressed = gzip.compress(tables["train.csv"])
    tables = {"train.csv.gz": compressed[: len(compressed) // 2], **{name: tables[name] for name in list(tables)[1:]}}
    run = prepare(tables)
    assert run.code == 2 and "train.csv.gz" in run.err and "damaged" in run.err


def copy_into_test(tables, n_images):
    """The tables with the first training images as the first test images."""
    train, test = tables["train.csv"].split(b"\n"), tables["test.csv"].split(b"\n")
    copies = [line.split(b",", 1)[1] for line in train[1 : n_images + 1]]
    return {**tables, "test.csv": b"\n".join([test[0], *copies, *test[n_images + 1 :]])}


def test_overlap_of_more_than_one_percent_is_refused_unless_allowed(prepare, tables):
    assert prepare(copy_into_test(tables, 1)).code == 0
    run = prepare(copy_into_test(tables, 2))
    assert run.code == 2 and run.err.count("\n") == 1
    assert "2 of the 100 images of test.csv also occur in train.csv (2.0%)" in run.err
    assert prepare(copy_into_test(tables, 2), "--set", "prepare.allow_overlap=true").code == 0


def test_tables_are_read_once_for_all_splits(prepare, tables, tmp_path):
    assert prepare(tables).code == 0
    file = tmp_path / "data/prepared/arrays/train_images.npy"
    time = file.stat().st_mtime_ns
    assert prepare(tables, "--set", "split.seed=1").code == 0
    assert file.stat().st_mtime_ns == time
    assert len(list((tmp_path / "data/prepared/splits").iterdir())) == 2
    file.write_bytes(b"")
    assert prepare(tables).code == 0
    assert np.load(file).shape == (400, 28, 28)
