"""Hundreds of damaged files: each gives a correct result, or an error of one line that names the file."""

import csv
import gzip
import io
import shutil
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import fetch, files, sources, tables
from pipeline.errors import UserError
from pipeline.recipes import config
from pipeline.workflow import store
from tests import mutants
from tests.conftest import TINY, competition_tables, stop_after_epoch, write_tables
from tests.dataset.test_idx import encode

MAX_SECONDS = 10  # for one file
TABLES, IMAGES, LABELS = competition_tables(60, 20)
COLUMNS = {"train.csv": 785, "test.csv": 784, "sample_submission.csv": 2}
ARRAYS = {"train_images.npy": IMAGES[:60], "train_labels.npy": LABELS[:60], "test_images.npy": IMAGES[60:]}
IDX_FILES = {
    "train-images-idx3-ubyte": encode(IMAGES[:60]),
    "train-labels-idx1-ubyte": encode(LABELS[:60]),
    "t10k-images-idx3-ubyte": encode(IMAGES[60:]),
    "t10k-labels-idx1-ubyte": encode(LABELS[60:]),
}


class FunctionReader:
    """Reads tables with the functions that download and prepare call."""

    def __init__(self, workspace):
        self.raw = workspace / "data/raw"

    def read(self, data="auto"):
        """The arrays by file name. Raises UserError."""
        if data != "auto":
            shutil.rmtree(self.raw, ignore_errors=True)
            self.raw.mkdir(parents=True)
            fetch.fetch_path(str(data), self.raw)
            table_files = files.find_tables(files.list_table_files(self.raw))
        else:
            table_files = sources.require_user_tables(self.raw, sources.find_user_files(self.raw))
        images, labels = tables.read_train_table(table_files["train"])
        test_images = tables.read_test_table(table_files["test"])
        tables.read_submission_table(table_files["sample_submission"], len(test_images))
        return {"train_images.npy": images, "train_labels.npy": labels, "test_images.npy": test_images}


class CommandReader:
    """Reads tables with the command line."""

    def __init__(self, workspace, command):
        self.workspace, self.command = workspace, command

    def read(self, data="auto"):
        """The arrays by file name. Raises UserError if the command ends with exit code 2 and one line."""
        shutil.rmtree(self.workspace / "data/prepared", ignore_errors=True)
        for stage in ("download", "prepare"):
            run = self.command("--stage", stage, *TINY, "--workspace", self.workspace, "--data", data)
            if run.code:
                assert run.code == 2 and run.err.startswith("error: ") and run.err.count("\n") == 1, run.err
                raise UserError(run.err.removeprefix("error: ").removesuffix("\n"))
        return {name: np.load(self.workspace / "data/prepared/arrays" / name) for name in ARRAYS}


@pytest.fixture(params=["functions", pytest.param("command line", marks=pytest.mark.slow)])
def reader(request, command, tmp_path):
    workspace = tmp_path / "workspace"
    return FunctionReader(workspace) if request.param == "functions" else CommandReader(workspace, command)


def every(step, mutations, start=0):
    """Every `step`-th mutant; without decompression bombs, whose creation takes seconds."""
    return [(mutation, content) for mutation, content in mutations if not callable(content)][start % step :: step]


def select(mutations, reader, start):
    """A fifth of the mutants in the fast tests, which use the functions; all of them on the command line."""
    if isinstance(reader, FunctionReader):
        return every(5, mutations, start)
    return ((mutation, content() if callable(content) else content) for mutation, content in mutations)


def require_correct_or_refused(reader, mutation, names, expected, data="auto"):
    """Read a damaged file; returns whether it was accepted.

    names: one of them must occur in an error.
    expected: the correct arrays, or None if the file is not valid.
    """
    start = time.monotonic()
    try:
        arrays = reader.read(data)
    except UserError as error:
        message = str(error)
        assert message.isprintable() and any(name in message for name in names), f"{mutation}: {message!r}"
        return False
    finally:
        assert time.monotonic() - start < MAX_SECONDS, mutation
    assert expected is not None, f"{mutation}: accepted, although the file is not valid"
    for name, array in expected.items():
        assert np.array_equal(arrays[name], array), f"{mutation}: {name} is wrong"
    return True


def parse_rows(content):
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def parse_table(name, content):
    """The arrays in a CSV by Python's csv module and the strictest rules, or None if the CSV is not valid."""
    header = parse_rows(TABLES[name])[0]
    try:
        text = content.decode("utf-8-sig")
        if "\0" in text or '"' in text.split("\n", 1)[1] or not text.isascii():
            return None
        rows = parse_rows(text.rstrip("\r\n").encode())
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


@pytest.mark.parametrize("name", TABLES)
def test_tables(reader, tmp_path, name):
    raw = write_tables(tmp_path / "workspace/data/raw", TABLES)
    for mutation, content in select(mutants.mutate_table(TABLES[name], COLUMNS[name]), reader, len(name)):
        (raw / name).write_bytes(content)
        require_correct_or_refused(reader, f"{name}, {mutation}", [name], parse_table(name, content))
        assert {path.name: path.read_bytes() for path in raw.glob("*.csv")} == TABLES | {name: content}


# Mutations that leave no valid zip of the tables.
INVALID_ZIPS = (
    "bomb", "link", "beside", "as /", "as C:", "as ..", "as a/..", "twice", "two folders", "no ", "empty", "encrypted",
)  # fmt: skip


def test_zips(reader, tmp_path):
    raw = tmp_path / "workspace/data/raw"
    raw.mkdir(parents=True)
    for mutation, content in select(mutants.mutate_zip(TABLES), reader, 3):
        (raw / "digits.zip").write_bytes(content)
        accepted = require_correct_or_refused(reader, f"zip, {mutation}", ["digits.zip", "data/raw"], ARRAYS)
        assert not accepted or not any(word in mutation for word in INVALID_ZIPS), f"{mutation}: accepted"
        assert list(raw.glob("*.zip")) == [raw / "digits.zip"] and (raw / "digits.zip").read_bytes() == content


def test_gzip_files(reader, tmp_path):
    raw = write_tables(tmp_path / "workspace/data/raw", {name: TABLES[name] for name in list(TABLES)[1:]})
    expected = {name: ARRAYS[name] for name in ("train_images.npy", "train_labels.npy")}
    for mutation, content in select(mutants.mutate_gzip(TABLES["train.csv"]), reader, 1):
        (raw / "train.csv.gz").write_bytes(content)
        require_correct_or_refused(reader, f"gzip, {mutation}", ["train.csv"], expected)


def parse_idx(name, content):
    """The array in an idx file by the definition of the format, or None if the file is not valid."""
    n_dimensions = 3 if "images" in name else 1
    start = 4 + 4 * n_dimensions
    if content[:4] != bytes((0, 0, 8, n_dimensions)) or len(content) < start:
        return None
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    size = 1
    for length in shape:
        size *= length
    if size != len(content) - start or (n_dimensions == 3 and shape[1:] != [28, 28]):
        return None
    values = np.array(list(content[start:]), np.uint8).reshape(shape)
    return values if n_dimensions == 3 or values.max(initial=0) <= 9 else None


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_idx_files(reader, tmp_path, name):
    folder = write_tables(tmp_path / "mnist", IDX_FILES)
    array_name = "train_images.npy" if "images" in name else "train_labels.npy"
    for mutation, content in select(mutants.mutate_idx(IDX_FILES[name]), reader, 2):
        (folder / name).write_bytes(content)
        array = parse_idx(name, content)
        expected = None if array is None else {array_name: array}
        require_correct_or_refused(reader, f"{name}, {mutation}", [str(folder), "train.csv"], expected, data=folder)
        assert (folder / name).read_bytes() == content


def test_valid_forms_are_accepted(reader, tmp_path):
    raw = tmp_path / "workspace/data/raw"
    raw.mkdir(parents=True)
    (raw / "train.csv.gz").write_bytes(gzip.compress(TABLES["train.csv"]))
    (raw / "rest.zip").write_bytes(mutants.make_zip({f"folder/{name}": TABLES[name] for name in list(TABLES)[1:]}))
    assert require_correct_or_refused(reader, "valid", [], ARRAYS)


@pytest.mark.parametrize("step", [pytest.param(100, id="few"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_recipes_on_the_command_line(command, tmp_path, step):
    file = tmp_path / "mine.toml"
    for mutation, content in every(step, mutants.mutate_toml(Path("pipeline/recipes/quick.toml").read_bytes())):
        file.write_bytes(content)
        start = time.monotonic()
        run = command("--status", "--recipe", file, "--workspace", tmp_path)
        assert time.monotonic() - start < MAX_SECONDS
        assert run.code in (0, 2), mutation
        if run.code:
            assert run.err.count("\n") == 1 and "mine.toml" in run.err, f"{mutation}: {run.err}"


@pytest.mark.parametrize("step", [pytest.param(8, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_recipes(tmp_path, step):
    file = tmp_path / "mine.toml"
    n_refused = 0
    for mutation, content in every(step, mutants.mutate_toml(Path("pipeline/recipes/quick.toml").read_bytes())):
        file.write_bytes(content)
        try:
            recipe = config.load_recipe(str(file))
        except UserError as error:
            n_refused += 1
            assert "mine.toml" in str(error) and "\n" not in str(error) and len(str(error)) < 10_000, mutation
            continue
        for section, values in tomllib.loads(content.decode("utf-8-sig")).items():
            for key, value in values.items() if isinstance(values, dict) else ():
                loaded = config.flatten(recipe, [f"{section}.{key}"])[f"{section}.{key}"]
                assert loaded == value or loaded == float(value), f"{mutation}: {section}.{key}"
    assert n_refused


@pytest.mark.parametrize("step", [pytest.param(12, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_checkpoints_and_weights(command, tiny, monkeypatch, step):
    options = (*TINY, "--workspace", tiny, "--device", "cpu")
    with monkeypatch.context() as patch:
        stop_after_epoch(patch)
        assert command("--stage", "train", *options, "--force").code == 130
    (checkpoint,) = tiny.glob("data/networks/*.partial/checkpoint.pt")
    shutil.rmtree(checkpoint.parent.with_suffix(""))  # the finished network, which would be reused
    weights = tiny / "data/runs/quick/train/weights.safetensors"
    for path, stage in ((checkpoint, "train"), (weights, "predict")):
        valid = path.read_bytes()
        for mutation, content in every(step, mutants.mutate_bytes(valid)):
            path.write_bytes(content)
            run = command("--stage", stage, *options)
            assert run.code == 2 and run.err.count("\n") == 1 and path.name in run.err, f"{mutation}: {run.err}"
        path.write_bytes(valid)
        assert command("--stage", stage, *options).code == 0


# Folders, and a stage that reads their manifests.
MANIFESTS = {
    "data/raw": "prepare",
    "data/prepared/arrays": "prepare",
    "data/networks/*": "train",
    "data/runs/quick/train": "predict",
    "data/runs/quick/evaluate": "predict",
    "submissions/quick": "predict",
}


@pytest.mark.parametrize("step", [pytest.param(600, id="few"), pytest.param(12, id="some", marks=pytest.mark.slow)])
@pytest.mark.parametrize("folder", MANIFESTS)
@pytest.mark.parametrize("name", [store.MANIFEST, store.CONTEXT, "submission.json"])
def test_records(command, tiny, folder, name, step):
    """`--status` works with any record; a stage that reads it works, or its error is one line."""
    paths = [*tiny.glob(f"{folder}/{name}")]
    if not paths:
        return
    path, options = paths[0], (*TINY, "--workspace", tiny, "--device", "cpu")
    valid = path.read_bytes()
    for mutation, content in every(step, mutants.mutate_json(valid)):
        path.write_bytes(content)
        assert command("--status", *options).code == 0, mutation
        run = command("--stage", MANIFESTS[folder], *options)
        assert run.code in (0, 2), f"{mutation}: {run.err}"
        assert run.code == 0 or (run.err.startswith("error: ") and run.err.count("\n") == 1), f"{mutation}: {run.err}"
        path.write_bytes(valid)
