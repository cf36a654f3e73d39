"""Hundreds of spoiled files: each ends in a right result or in exit code 2 and one line that names the file."""

import csv
import gzip
import io
import shutil
import struct
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pipeline import artifacts, recipe
from pipeline.settings import as_plain
from tests import mutants
from tests.conftest import SHORT, competition_tables, write_tables

LIMIT = 10  # seconds for one file
TABLES, IMAGES, LABELS = competition_tables(60, 20)
COLUMNS = {"train.csv": 785, "test.csv": 784, "sample_submission.csv": 2}


class Tried:
    """Runs `download` and `prepare` on spoiled files, and holds what they do against what they must."""

    def __init__(self, command, workspace):
        self.command, self.workspace = command, workspace
        self.accepted = self.refused = 0

    def __call__(self, name, named, what_is_there, data="auto"):
        """named: words of which one must stand in the error. what_is_there: the right arrays, or None where they are
        what no oracle would take."""
        shutil.rmtree(self.workspace / "data/prepared", ignore_errors=True)
        began, words = time.monotonic(), (*SHORT, "--workspace", self.workspace, "--data", data)
        for stage in ("download", "prepare"):
            run = self.command("--stage", stage, *words)
            if run.code:
                break
        assert time.monotonic() - began < LIMIT, name
        if run.code:
            self.refused += 1
            assert run.code == 2, f"{name}: {run.code} {run.err}"
            assert run.err.startswith("error: ") and run.err.count("\n") == 1, f"{name}: {run.err}"
            assert any(word in run.err for word in named), f"{name}: {run.err}"
            assert run.err.isprintable() or run.err[:-1].isprintable(), f"{name}: {run.err!r}"
            return
        self.accepted += 1
        assert what_is_there is not None, f"{name}: taken, although it is no such file"
        for file, right in what_is_there.items():
            found = np.load(self.workspace / "data/prepared/arrays" / file)
            assert np.array_equal(found, right), f"{name}: {file} is misread"


@pytest.fixture
def tried(command, tmp_path):
    made = Tried(command, tmp_path / "workspace")
    yield made
    assert made.refused  # or the corpus is none of bad input


def oracle(name, content):
    """What a CSV says by Python's csv module, and by the strictest reading; None where it is not such a table."""
    header = csv_rows(TABLES[name])[0]
    try:
        text = content.decode("utf-8-sig")
        if "\0" in text or '"' in text.split("\n", 1)[1] or not text.isascii():
            return None
        rows = csv_rows(text.rstrip("\r\n").encode())
    except (UnicodeDecodeError, csv.Error, IndexError):
        return None
    if [cell.strip().strip('"') for cell in rows[0]] != header or len(rows) < 2:
        return None
    if any(len(row) != len(header) or not all(cell.isdigit() for cell in row) for row in rows[1:]):
        return None
    values = [[int(cell) for cell in row] for row in rows[1:]]
    if name == "sample_submission.csv":
        return {} if [row[0] for row in values] == list(range(1, 21)) else None
    if max(map(max, values)) > 255 or (name == "train.csv" and max(row[0] for row in values) > 9):
        return None
    values = np.array(values, np.uint8)
    if name == "test.csv":
        return {"test_images.npy": values.reshape(-1, 28, 28)} if len(values) == 20 else None
    return {"train_images.npy": values[:, 1:].reshape(-1, 28, 28), "train_labels.npy": values[:, 0]}


def csv_rows(content):
    text = content if isinstance(content, str) else content.decode()
    return list(csv.reader(io.StringIO(text, newline="")))


# Of each corpus: a part that is quick, and, when slow tests are asked for, all of it.
SHARES = [pytest.param(12, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]


def some(corpus, share, first=0):
    return list(corpus)[first % share :: share]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", TABLES)
def test_spoiled_tables(tried, name, share):
    raw = write_tables(tried.workspace / "data/raw", TABLES)
    for what, content in some(mutants.of_table(TABLES[name], COLUMNS[name]), share, len(name)):
        mutants.put(raw / name, content)
        tried(f"{name}, {what}", (name,), oracle(name, content))
        assert {path.name: path.read_bytes() for path in raw.glob("*.csv")} == TABLES | {name: content}


RIGHT = {
    "train_images.npy": IMAGES[:60],
    "train_labels.npy": LABELS[:60],
    "test_images.npy": IMAGES[60:],
}
NEVER = (
    "bomb",
    "link",
    "beside",
    "as /",
    "as C:",
    "as ..",
    "as a/..",
    "twice",
    "two folders",
    "no ",
    "empty",
    "encrypted",
)


@pytest.mark.parametrize("share", SHARES)
def test_spoiled_zips(tried, share):
    raw = tried.workspace / "data/raw"
    raw.mkdir(parents=True)
    for what, content in some(mutants.of_zip(TABLES), share, 3):
        (raw / "digits.zip").write_bytes(content)
        taken = tried.accepted
        tried(f"a zip, {what}", ("digits.zip", "data/raw"), RIGHT)
        assert taken == tried.accepted or not any(word in what for word in NEVER), f"{what}: taken"
        assert list(raw.glob("*.zip")) == [raw / "digits.zip"] and (raw / "digits.zip").read_bytes() == content


@pytest.mark.parametrize("share", SHARES)
def test_spoiled_gzips(tried, share):
    raw = write_tables(tried.workspace / "data/raw", {name: TABLES[name] for name in list(TABLES)[1:]})
    for what, content in some(mutants.of_gzip(TABLES["train.csv"]), share, 5):
        (raw / "train.csv.gz").write_bytes(content)
        tried(
            f"a gzip, {what}", ("train.csv",), {name: RIGHT[name] for name in ("train_images.npy", "train_labels.npy")}
        )


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IDX = {
    "train-images-idx3-ubyte": idx(IMAGES[:60]),
    "train-labels-idx1-ubyte": idx(LABELS[:60]),
    "t10k-images-idx3-ubyte": idx(IMAGES[60:]),
    "t10k-labels-idx1-ubyte": idx(LABELS[60:]),
}


def idx_oracle(name, content):
    """The array that an idx file's bytes hold, by the format's own words; None where they hold none of this kind."""
    dimensions = 3 if "images" in name else 1
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        return None
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    count = 1
    for size in shape:
        count *= size
    if count != len(content) - start or (dimensions == 3 and shape[1:] != [28, 28]):
        return None
    values = np.array(list(content[start:]), np.uint8).reshape(shape)
    return values if dimensions == 3 or values.max(initial=0) <= 9 else None


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"))
def test_spoiled_idx_files(tried, tmp_path, name, share):
    folder = write_tables(tmp_path / "mnist", IDX)
    kind = "train_images.npy" if "images" in name else "train_labels.npy"
    for what, content in some(mutants.of_idx(IDX[name]), share, 7):
        (folder / name).write_bytes(content)
        right = idx_oracle(name, content)
        tried(f"{name}, {what}", (str(folder), "train.csv"), None if right is None else {kind: right}, data=folder)
        assert (folder / name).read_bytes() == content


def test_two_in_a_zip_and_one_packed_are_still_right(tried):
    """What is valid, in the forms that people have, passes the same door."""
    raw = tried.workspace / "data/raw"
    raw.mkdir(parents=True)
    (raw / "train.csv.gz").write_bytes(gzip.compress(TABLES["train.csv"]))
    (raw / "rest.zip").write_bytes(mutants.zipped({f"folder/{name}": TABLES[name] for name in list(TABLES)[1:]}))
    tried("forms", (), RIGHT)
    assert tried.accepted == 1
    tried.refused = 1  # it is no corpus


@pytest.mark.parametrize("share", SHARES)
def test_spoiled_recipes(command, tmp_path, share):
    file = tmp_path / "mine.toml"
    valid = Path("pipeline/recipes/quick.toml").read_bytes()
    refused = 0
    for what, content in some(mutants.of_toml(valid), share):
        file.write_bytes(content)
        began = time.monotonic()
        run = command("--status", "--recipe", file, "--workspace", tmp_path)
        assert time.monotonic() - began < LIMIT
        if run.code:
            refused += 1
            assert run.code == 2 and run.err.count("\n") == 1 and "mine.toml" in run.err, f"{what}: {run.err}"
            assert len(run.err) < 10_000, what
        else:
            table = tomllib.loads(content.decode("utf-8-sig"))
            made = recipe.load(str(file))
            for section, values in table.items():
                for key, value in values.items() if isinstance(values, dict) else ():
                    found = as_plain(getattr(made, section))[key]
                    assert found == value or found == float(value), f"{what}: {section}.{key}"
    assert refused


@pytest.mark.parametrize("share", SHARES)
def test_spoiled_checkpoints_and_weights(command, finished, monkeypatch, share):
    words = (*SHORT, "--workspace", finished, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.fitting.as_csv", lambda history: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("--stage", "train", *words, "--force").code == 130
    checkpoint = finished / "data/runs/quick/train.partial/checkpoint.pt"
    weights = finished / "data/runs/quick/train/weights.safetensors"
    for path, stage in ((checkpoint, "train"), (weights, "predict")):
        good = path.read_bytes()
        for what, content in some(mutants.of_bytes(good), share):
            path.write_bytes(content)
            run = command("--stage", stage, *words)
            assert run.code == 2 and run.err.count("\n") == 1 and path.name in run.err, f"{what}: {run.err}"
        path.write_bytes(good)
        assert command("--stage", stage, *words).code == 0


MANIFESTS = (
    "data/raw",
    "data/prepared/arrays",
    "data/runs/quick/train",
    "data/runs/quick/evaluate",
    "submissions/quick",
)


@pytest.mark.parametrize("share", [pytest.param(300, id="some"), pytest.param(12, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize("folder", MANIFESTS)
@pytest.mark.parametrize("name", [artifacts.MANIFEST, artifacts.CONTEXT, "submission.json"])
def test_spoiled_records(command, finished, folder, name, share):
    """`--status` works with any record; a stage that reads it works, or says in one line why not."""
    path = finished / folder / name
    if not path.exists():
        return
    good, words = path.read_bytes(), (*SHORT, "--workspace", finished, "--device", "cpu")
    stage = (
        "prepare" if folder.startswith(("data/raw", "data/prepared")) else "evaluate" if "runs" in folder else "predict"
    )
    for what, content in some(mutants.of_json(good), share):
        path.write_bytes(content)
        assert command("--status", *words).code == 0, what
        run = command("--stage", stage, *words)
        assert run.code in (0, 2), f"{what}: {run.err}"
        assert run.code == 0 or (run.err.startswith("error: ") and run.err.count("\n") == 1), f"{what}: {run.err}"
        path.write_bytes(good)
