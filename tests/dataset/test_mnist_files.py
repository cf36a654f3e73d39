"""MNIST as others distribute it: CSVs with labels, and idx files in zips; advice about files that are not read."""

import gzip
import io
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset import fetch, files, tables
from pipeline.dataset.files import SourceError, TableFile
from pipeline.errors import UserError
from pipeline.workflow import store
from tests import mutants
from tests.conftest import TINY, as_csv, as_zip, competition_tables, mnist_files, read_receipt, write_tables

TABLES, IMAGES, LABELS = competition_tables(60, 20)
IDX_FILES, _ = mnist_files(60, 20)
HEADERS = {
    "none": None,
    "1x1": ["label", *(f"{row}x{column}" for row in range(1, 29) for column in range(1, 29))],
    "pixel0": ["label", *(f"pixel{i}" for i in range(784))],
    "pixel1": ["label", *(f"pixel{i}" for i in range(1, 785))],
}


def as_mnist(start, stop, header=None):
    """A CSV with the label first, written with Python's csv module."""
    rows = np.column_stack([LABELS, IMAGES.reshape(len(IMAGES), -1)])[start:stop].tolist()
    return as_csv(header or rows[0], rows if header else rows[1:])


TRAIN, TEST = as_mnist(0, 60), as_mnist(60, 80)
CSVS = {"mnist_train.csv": TRAIN, "mnist_test.csv": TEST}


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "workspace/data/raw"


@pytest.fixture
def download(command, tmp_path):
    return lambda data="auto": command("--stage", "download", "--data", data, "--workspace", tmp_path / "workspace")


def read_csv(path):
    return np.array([[int(cell) for cell in row.split(",")] for row in path.read_text().splitlines()[1:]])


def require_mnist(run, raw, source):
    """The published tables have the 60 and 20 digits, with the labels of the test digits."""
    assert run.code == 0, run.err
    assert store.read_manifest(raw)[0]["numbers"] == {"source": source}
    flat = IMAGES.reshape(80, -1)
    assert np.array_equal(read_csv(raw / "train.csv"), np.column_stack([LABELS[:60], flat[:60]]))
    assert np.array_equal(read_csv(raw / "test.csv"), flat[60:])
    assert np.array_equal(read_csv(raw / "test_labels.csv"), np.column_stack([range(1, 21), LABELS[60:]]))


def require_error(run, message):
    assert (run.code, run.err.count("\n")) == (2, 1), run.err
    assert run.err.startswith("error: ") and message in run.err


class TestCSVs:
    @pytest.mark.parametrize("header", HEADERS)
    def test_headers(self, download, raw, tmp_path, header):
        names = HEADERS[header]
        contents = {"mnist_train.csv": as_mnist(0, 60, names), "mnist_test.csv": as_mnist(60, 80, names)}
        require_mnist(download(write_tables(tmp_path / "given", contents)), raw, "mnist")

    @pytest.mark.parametrize(
        "contents",
        [
            {f"{name}.gz": gzip.compress(content) for name, content in CSVS.items()},
            {f"{name}.zip": as_zip({name: content}) for name, content in CSVS.items()},
            {"archive.zip": as_zip(CSVS)},
            {"archive.zip": as_zip({f"mnist/{name}.gz": gzip.compress(content) for name, content in CSVS.items()})},
            {"MNIST_train.csv": TRAIN, "MNIST_test.CSV": TEST},
            {"mnist_train_small.csv": TRAIN, "mnist_test.csv": TEST, "california_housing_test.csv": b"1\n"},  # Colab
            CSVS | {"older.zip": as_zip({"mnist_train.csv": TEST}), "train.csv": b"of something else"},
        ],
        ids=["gz", "zip for each", "zip", "zip with gz in a folder", "capitals", "Colab", "precedence"],
    )
    def test_forms(self, download, raw, tmp_path, contents):
        require_mnist(download(write_tables(tmp_path / "given", contents)), raw, "mnist")

    def test_zip_by_its_path(self, download, raw, tmp_path):
        (tmp_path / "archive (1).ZIP").write_bytes(as_zip({"__MACOSX/mnist_train.csv": b"", **CSVS}))
        require_mnist(download(tmp_path / "archive (1).ZIP"), raw, "mnist")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("mnist_train.csv", TRAIN),
            ("mnist_train.csv.gz", gzip.compress(TRAIN)),
            ("train only.zip", as_zip({"mnist_train.csv": TRAIN})),
        ],
    )
    def test_training_rows_alone_are_divided(self, download, raw, tmp_path, name, content):
        """A quarter becomes the test rows: each digit occurs once, in one of the two tables, with its label."""
        (tmp_path / name).write_bytes(content)
        run = download(tmp_path / name)
        assert run.code == 0, run.err
        assert "15 of the training rows are used instead" in run.out
        train, test, labels = (read_csv(raw / file) for file in ("train.csv", "test.csv", "test_labels.csv"))
        assert (len(train), len(test)) == (45, 15)
        rows = np.concatenate([train, np.column_stack([labels[:, 1], test])]).astype(np.uint8)
        expected = np.column_stack([LABELS, IMAGES.reshape(80, -1)])[:60].astype(np.uint8)
        assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in expected)

    def test_test_rows_alone_are_refused(self, download, raw, tmp_path):
        folder = write_tables(tmp_path / "given", {"mnist_test.csv": TEST})
        require_error(download(folder), "mnist_test.csv exists, but mnist_train.csv (or .gz) is missing")
        assert not raw.exists()

    def test_cannot_be_submitted(self, command, tmp_path):
        options = (*TINY, "--workspace", tmp_path / "workspace")
        data = write_tables(tmp_path / "given", CSVS)
        run = command("--stage", "all", *options, "--data", data, "--device", "cpu")
        assert run.code == 0, run.err
        assert "on the 20 test rows, whose labels the source has" in run.out
        assert "not possible: it was made from mnist data, not from the competition's" in run.out
        receipt = read_receipt(tmp_path / "workspace")
        assert receipt["can_be_submitted"] is False and receipt["source"] == "mnist"
        submission = (tmp_path / "workspace/submissions/quick/submission.csv").read_text().splitlines()[1:]
        predicted = np.array([int(line.split(",")[1]) for line in submission])
        assert receipt["test_score"] == pytest.approx(np.mean(predicted == LABELS[60:]))
        require_error(command("--stage", "submit", *options), "was made from mnist data, not from the competition's")


class TestRows:
    """Errors in CSVs of MNIST name the row and the line of the file."""

    def read(self, folder, content):
        (folder / "mnist_train.csv").write_bytes(content)
        return tables.read_train_table(TableFile(folder / "mnist_train.csv"), "mnist")

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        at=st.integers(0, len(as_mnist(0, 2)) - 1),
        byte=st.sampled_from(b'0123456789,\n\r" ;-+.eE\0\xff\t'),
        end=st.sampled_from(["\n", "\r\n"]),
        bom=st.booleans(),
    )
    def test_one_changed_byte_is_read_correctly_or_refused(self, tmp_path, at, byte, end, bom):
        content = as_mnist(0, 2)
        content = content[:at] + bytes([byte]) + content[at + 1 :]
        try:
            images, labels = self.read(tmp_path, b"\xef\xbb\xbf" * bom + content.replace(b"\n", end.encode()))
        except UserError as error:
            assert str(tmp_path / "mnist_train.csv") in str(error) and str(error).isprintable()
            return
        rows = [line.split(",") for line in content.decode().rstrip("\r\n").replace("\r", "").split("\n")]
        values = np.column_stack([labels, images.reshape(len(images), -1)])
        assert [[int(cell) for cell in row] for row in rows] == values.tolist()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (TRAIN.replace(b"\n", b"\n10", 2).replace(b"\n10", b"\n", 1), "row 3 (line 3), column label is '10"),
            (as_mnist(0, 9, HEADERS["1x1"]).replace(b"\n", b"\n77", 1), "row 1 (line 2), column label is '77"),
            (TRAIN[:-300], "row 60 (line 60) has"),
            (b"label,1x1,1x2\n" + TRAIN, "the first line is 'label,1x1,1x2', expected label,1x1,...,28x28 or"),
            (b",".join([*map(str.encode, HEADERS["1x1"][1:]), b"label\n"]) + TRAIN, "the first line is '1x1,1x2"),
            (b"", "the first line is '', expected label,1x1"),
            (TRAIN.replace(b",", b";"), "the first line is"),
            (as_csv(HEADERS["1x1"], []), "contains a header and no rows"),
            (b"1" * 200_000, "row 1 (line 1), column label"),
        ],
        ids=["label 10", "label 77", "cut", "few columns", "label last", "empty", "semicolons", "no rows", "endless"],
    )
    def test_errors(self, tmp_path, content, message):
        with pytest.raises(UserError) as error:
            self.read(tmp_path, content)
        assert str(error.value).startswith(str(tmp_path / "mnist_train.csv")) and message in str(error.value)
        assert str(error.value).isprintable()

    def test_limit_of_rows_holds(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tables, "MAX_BYTES", 2 * 785 * 30)
        with pytest.raises(tables.DataError, match="more than 30 rows, more than any such table has"):
            self.read(tmp_path, TRAIN)


class TestIdxInZips:
    @pytest.mark.parametrize(
        "members",
        [
            IDX_FILES,
            {f"mnist/raw/{name}.gz": gzip.compress(content) for name, content in IDX_FILES.items()},
            {name.replace("-idx", ".idx"): content for name, content in IDX_FILES.items()},
            # As in a popular data set on Kaggle: each file twice.
            {f"{name}/{name}": content for name, content in IDX_FILES.items()}
            | {name.replace("-idx", ".idx"): content for name, content in IDX_FILES.items()},
        ],
        ids=["plain", "gz in a folder", "dots", "each twice"],
    )
    def test_forms(self, download, raw, tmp_path, members):
        (tmp_path / "archive.zip").write_bytes(as_zip(members))
        require_mnist(download(tmp_path / "archive.zip"), raw, "idx")

    def test_extracted_with_folders_of_the_same_names(self, download, raw, tmp_path):
        folder = write_tables(tmp_path / "archive", {n.replace("-idx", ".idx"): c for n, c in IDX_FILES.items()})
        for name in IDX_FILES:
            (folder / name).mkdir()
        require_mnist(download(folder), raw, "idx")

    def test_missing_member(self, download, tmp_path):
        (tmp_path / "archive.zip").write_bytes(as_zip(dict([*IDX_FILES.items()][:3])))
        require_error(
            download(tmp_path / "archive.zip"), "archive.zip (train-images-idx3-ubyte) exists, but t10k-labels"
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (as_zip({**IDX_FILES, "train-images-idx3-ubyte": bytes(20_000_000)}), "would grow from"),
            (as_zip({"mnist_train.csv": b"1" * 20_000_000}), "would grow from"),
            (mutants.make_zip([*IDX_FILES.items(), ("../x", b"")]), "leads outside the zip"),
            (mutants.make_zip(IDX_FILES, links={"x": b"/etc"}), "is a link"),
            (as_zip(IDX_FILES | {"train-labels-idx1-ubyte": IDX_FILES["train-labels-idx1-ubyte"][:-1]}), "59 bytes"),
            (as_zip({**IDX_FILES, "train-images-idx3-ubyte": TRAIN}), "not an idx file of images"),
            (as_zip({f"{name}.gz": content for name, content in IDX_FILES.items()}), "is damaged"),
            (as_zip(IDX_FILES)[:-50], "not a zip file, or damaged"),
        ],
    )
    def test_damaged_and_unsafe_zips_are_refused(self, download, raw, tmp_path, content, message):
        (tmp_path / "archive.zip").write_bytes(content)
        require_error(download(tmp_path / "archive.zip"), message)
        assert not raw.exists()

    def test_mutated_zips_are_read_correctly_or_refused(self, tmp_path):
        path, folder = tmp_path / "archive.zip", tmp_path / "converted"
        expected = None
        for mutation, content in [("valid", as_zip(IDX_FILES)), *mutants.mutate_bytes(as_zip(IDX_FILES), count=20)]:
            path.write_bytes(content)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                fetch.fetch_path(str(path), folder)
            except UserError as error:
                assert "archive.zip" in str(error) and str(error).isprintable(), mutation
                continue
            converted = {file.name: file.read_bytes() for file in folder.iterdir()}
            expected = expected or converted
            assert converted == expected, mutation


def test_a_competition_folder_is_not_confused(download, raw, tmp_path):
    """Complete tables of the competition take precedence over everything beside them."""
    folder = write_tables(tmp_path / "given", TABLES | CSVS | IDX_FILES | {"mnist.zip": as_zip(CSVS | IDX_FILES)})
    assert download(folder).code == 0
    assert store.read_manifest(raw)[0]["numbers"] == {"source": "path"}
    assert {name: (raw / name).read_bytes() for name in TABLES} == TABLES
    assert not (raw / "test_labels.csv").exists()


@pytest.mark.parametrize("name", ["digit-recognizer (1).zip", "digit-recognizer.ZIP"])
def test_zip_of_the_competition_under_another_name(download, command, raw, tmp_path, name):
    """By its path, and as the user's own file in data/raw."""
    write_tables(tmp_path / "given", {name: as_zip(TABLES)})
    for data in (tmp_path / "given" / name, tmp_path / "given", "auto"):
        shutil.rmtree(raw.parents[1], ignore_errors=True)
        if data == "auto":
            write_tables(raw, {name: as_zip(TABLES)})
        assert download(data).code == 0
        assert store.read_manifest(raw)[0]["numbers"] == {"source": "files" if data == "auto" else "path"}
        run = command("--stage", "prepare", *TINY, "--data", data, "--workspace", raw.parents[1])
        assert run.code == 0, run.err


EXTRACT = "is an archive that is not read here: extract it first"


class TestAdvice:
    @pytest.mark.parametrize("ending", files.OTHER_ARCHIVES)
    def test_archives_of_other_kinds(self, download, raw, tmp_path, ending):
        name = f"Train.csv{ending.upper()}"
        folder = write_tables(tmp_path / "given", TABLES | {"a": b""})
        (folder / "train.csv").unlink()
        (folder / name).write_bytes(as_zip({"notes.7z": b""}) if ending == ".zip" else b"any")
        require_error(download(folder), "train.csv not found (plain, .gz, .zip, or in the competition's zip); ")
        run = download(folder)
        assert (f"{name} {EXTRACT}" if ending != ".zip" else f"notes.7z {EXTRACT}") in run.err
        if ending != ".zip":
            require_error(download(folder / name), "expected a folder, or a zip with the competition's CSVs")
            assert f"{name} {EXTRACT}" in download(folder / name).err
        assert not raw.exists()

    @pytest.mark.parametrize("name", ["digit-recognizer.zip", "train.csv.bz2", "mnist.tar.gz"])
    def test_archives_in_a_zip(self, download, tmp_path, name):
        (tmp_path / "given.zip").write_bytes(as_zip({f"folder/{name}": as_zip(TABLES)}))
        require_error(download(tmp_path / "given.zip"), f"; {name} {EXTRACT}")

    @pytest.mark.parametrize(
        ("name", "known"),
        [
            ("train (1).csv", "train.csv"),
            ("test(2).csv.gz", "test.csv.gz"),
            ("mnist_train (3).csv", "mnist_train.csv"),
            ("Sample_Submission (1).csv", "sample_submission.csv"),
        ],
    )
    def test_second_downloads(self, download, raw, tmp_path, name, known):
        folder = write_tables(tmp_path / "given", {name: TRAIN})
        require_error(download(folder), f"; rename {name} to {known}")
        require_error(download(folder / name), f"; rename {name} to {known}")
        (tmp_path / "given.zip").write_bytes(as_zip({name: TRAIN}))
        require_error(download(tmp_path / "given.zip"), f"; rename {name} to {known}")
        write_tables(raw, {name: TRAIN})
        require_error(download(), f"; rename {name} to {known}")
        assert (raw / name).read_bytes() == TRAIN

    def test_among_the_users_own_files(self, download, raw):
        write_tables(raw, {"train (1).csv": TABLES["train.csv"], "test.csv": TABLES["test.csv"]})
        require_error(download(), "train.csv and sample_submission.csv not found")
        assert "; rename train (1).csv to train.csv" in download().err

    def test_other_names_are_not_interpreted(self, download, tmp_path):
        folder = write_tables(tmp_path / "given", {"train (x).csv": b"", "my train (1).csv": b"", "notes (1).txt": b""})
        run = download(folder)
        assert run.code == 2 and run.err.endswith("in the competition's zip)\n")


def test_table_file_opens_a_gzip_member(tmp_path):
    (tmp_path / "a.zip").write_bytes(as_zip({"x/table.csv.gz": gzip.compress(b"content" * 1000)}))
    file = TableFile(tmp_path / "a.zip", "x/table.csv.gz")
    with file.open() as stream:
        assert io.BufferedReader(stream).read() == b"content" * 1000
    assert file.name == "table.csv.gz"
    (tmp_path / "a.zip").write_bytes(as_zip({"x/table.csv.gz": gzip.compress(b"content" * 1000)[:-9]}))
    with pytest.raises(SourceError, match="is damaged"), file.open() as stream:
        stream.read()
