"""Forged files of a workspace: each command gives a result or one line of the pipeline's own, and stays inside."""

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main, status, summary
from pipeline.dataset.submission import Submission
from pipeline.errors import PipelineError, StageError, one_line
from pipeline.kaggle import competition
from pipeline.metrics.expected_score import estimate_score
from pipeline.nn import pretrained
from pipeline.nn.networks import load_networks
from pipeline.recipes import config
from pipeline.workflow import schemas, store
from tests import forgeries
from tests.conftest import ALL_FRESH, TINY, forge, ran

model_card = pytest.importorskip("pipeline.extras.export.model_card")
internals = pytest.importorskip("pipeline.extras.inspect.internals")
report = pytest.importorskip("pipeline.extras.inspect.report")

FAST, SLOW = 30, 2000  # forgeries
SUFFIXES = (".json", ".npy", ".safetensors", ".csv")

# The files that belong to no manifest, or are not in every workspace, with a valid content.
STARTED = "data/runs/quick/train.partial/started.json"
ADDED = {
    "data/runs/quick/train.partial/networks.json": {"folders": ["small-seed0-0123456789ab"]},
    "data/compare/quick/context.json": {"stage": "compare", "recipes": ["quick"], "assignments": ["compare.seeds=2"]},
    "data/.lock-holder.json": {"pid": 5, "stage": "train", "since": "2026-01-01 00:00:00"},
    "data/notebook/push.json": {"notebook": "a/b", "sha256": "0" * 64, "status": "pushed", "version": 1}
    | {"url": "https://www.kaggle.com/code/a/b", "date": "2026-01-01"},
}  # fmt: skip


class Forger:
    """A workspace beside a folder that no command may touch; `restore` undoes all changes."""

    def __init__(self, original, folder):
        self.original, self.folder, self.workspace = original, folder, folder / "workspace"
        for name in ("secret.txt", "manifest.json", "data/networks/x/weights.safetensors", "arrays/train_images.npy"):
            path = folder / "outside" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"not yours")
            os.utime(path, ns=(0, 0))
        self.outside = self.look_outside()
        self.restore()

    def restore(self):
        shutil.rmtree(self.workspace, ignore_errors=True)
        shutil.copytree(self.original, self.workspace)
        for name, value in ADDED.items():
            path = self.workspace / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
        manifest = json.loads((self.workspace / "data/runs/quick/train/manifest.json").read_bytes())
        started = {name: manifest[name] for name in ("format", "stage", "settings", "inputs", "code")}
        (self.workspace / STARTED).write_text(json.dumps(started))

    def look_outside(self):
        paths = sorted(path for path in self.folder.rglob("*") if self.workspace not in (path, *path.parents))
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else sorted(os.listdir(path)))
            for path in paths
        }

    def forge(self, random):
        """(file, description, content) of a forgery of one of the files that the pipeline reads."""
        paths = sorted(
            path
            for path in self.workspace.rglob("*")
            if path.suffix in SUFFIXES and (path.suffix != ".csv" or path.name == "history.csv")
        )
        path = random.choice([path for path in paths if path.suffix == ".json" or random.random() < 0.5])
        name, content = path.relative_to(self.workspace).as_posix(), path.read_bytes()
        if path.suffix == ".json":
            about, value = forgeries.forge_json(json.loads(content), random)
            return name, about, (forgeries.seal if path.name == "manifest.json" else forgeries.as_json)(value)
        if path.suffix == ".npy":
            forged = forgeries.forge_array(np.load(path))
        elif path.suffix == ".safetensors":
            forged = forgeries.forge_weights(content, random)
        else:
            forged = forgeries.forge_history(content)
        return name, *random.choice(list(forged))

    def place(self, name, content):
        """Write a forged file; the manifests that list it get its hash."""
        path = self.workspace / name
        path.write_bytes(content)
        for manifest_file in self.workspace.rglob("manifest.json"):
            outputs = json.loads(manifest_file.read_bytes())["outputs"] if manifest_file != path else {}
            hashes = {
                output: store.sha256(path)
                for output in outputs
                if (manifest_file.parent / output).resolve() == path.resolve()
            }
            if hashes:
                forge(manifest_file.parent, lambda manifest, hashes=hashes: manifest["outputs"].update(hashes))


@pytest.fixture(scope="module")
def forger(_tiny, tmp_path_factory):
    return Forger(_tiny, tmp_path_factory.mktemp("forged"))


@pytest.fixture
def check(command, monkeypatch, forger):
    """Run a command in the workspace of `forger`: `check("--status")`."""
    errors = []
    for module in (main, status):
        monkeypatch.setattr(module, "one_line", lambda error: errors.append(error) or one_line(error))
    for module in (competition, summary):
        monkeypatch.setattr(module, "TEST_ROWS", 100)

    def call(*arguments):
        errors.clear()
        run = command(*arguments, "--workspace", forger.workspace)
        for error in errors:
            is_explained = isinstance(error, PipelineError) or (isinstance(error, OSError) and error.strerror)
            assert is_explained, f"{arguments[:2]}: {type(error).__name__}: {error}"
        assert run.code in (0, 1, 2) and run.err.count("\n") == (run.code > 0), (arguments, run.err[:500])
        assert forger.look_outside() == forger.outside
        return run

    yield call
    forger.restore()


def check_forgery(forger, check, name, content, stages):
    forger.place(name, content)
    check("--status")
    check("--status", *TINY)
    for stage in stages:
        check("--stage", stage, *TINY, "--device", "cpu")
    check("--clean", "--yes")
    check("--status", *TINY)


def stages_that_read(name):
    """The stages that a forged file can disturb, apart from those before the one that made it."""
    if name.startswith("submissions"):
        return ("submit", "predict", "submit")
    if name.startswith("data/notebook"):
        return ("notebook",)
    return ("all",)


def run_forgeries(forger, check, seeds, with_stages):
    failed = []
    for seed in seeds:
        forger.restore()
        name, about, content = forger.forge(random.Random(seed))
        try:
            check_forgery(forger, check, name, content, stages_that_read(name) if with_stages(seed) else ())
        except Exception as error:  # AssertionError, and what escaped from a command
            failed.append(f"{seed}, {name}: {about}: {type(error).__name__}: {str(error)[:300]}")
    assert not failed, f"{len(failed)} of {len(seeds)}:\n" + "\n".join(failed[:60])


def test_forged_files(forger, check):
    """Each tenth also runs the stages."""
    run_forgeries(forger, check, range(FAST), lambda seed: seed % 10 == 0)


@pytest.mark.slow
def test_many_forged_files(forger, check, without_pictures):
    run_forgeries(forger, check, range(FAST, FAST + SLOW), lambda seed: True)


# What a schema accepts, the code that reads it can use.


def forge_many(value, schema, count=300):
    """The forgeries of a value that the schema accepts; most are refused."""
    schemas.check(value, schema)
    accepted = []
    for seed in range(count):
        _, forged = forgeries.forge_json(value, random.Random(seed))
        with contextlib.suppress(ValueError):
            schemas.check(forged, schema)
            accepted.append(forged)
    assert 0 < len(accepted) < count
    return accepted


def test_accepted_metrics_can_be_used(_tiny):
    metrics = json.loads((_tiny / "data/runs/quick/evaluate/metrics.json").read_bytes())
    measured = {"accuracy": 0.99, "std": 0.001, "seeds": 4, "rows": 10500, "same_data": False, "date": ""}
    recipe = config.load_recipe("quick")
    network = {"model": {"name": "small_cnn"}, "fit_all": False, "fold": None, "precision": "fp32"}
    for accepted in forge_many(metrics | {"measured": measured}, schemas.Metrics):
        estimate_score(accepted, 28_000)
        pretrained.choose_temperature(accepted)
        model_card.render(recipe, [network], accepted, None, {})
        list(report._overview({}, accepted, {"numbers": {}}))


def test_accepted_receipts_can_be_shown(_tiny):
    receipt = json.loads((_tiny / "submissions/quick/submission.json").read_bytes())
    receipt["sent"] = [{"sha256": "0" * 64, "message": "", "date": "", "ref": 5, "score": 0.5}]
    for accepted in forge_many(receipt, schemas.Receipt):
        assert list(summary._accuracy_lines(accepted, "")) and list(summary._submission_lines(accepted, "a.csv", ""))
        Submission(Path(), Path(), accepted, "").weights()
        json.dumps(accepted, indent=2)


# The entries of a receipt that no code reads, and changes of others that leave it valid; (): removed.
UNREAD = (
    "recipe",
    "commit",
    "versions",
    "sha256/settings",
    "sha256/data",
    "validation/rests_on",
    "validation/why_none",
)
VALID = {
    "expected_score": [(None,)],
    "test_score": [(None,)],
    "sent/0": [()],
    "sent/0/ref": [(None,), ("x",)],
    "sent/0/score": [(None,), (-5,)],
}


def test_a_receipt_that_lacks_a_field_or_has_one_of_another_type_is_stale(tiny, status, stage):
    path = tiny / "submissions/quick/submission.json"
    expected = {"estimate": 0.9, "interval_95": [0.8, 0.95], "rests_on": "4 seeds"}
    sent = [{"sha256": "0" * 64, "message": "", "date": "", "ref": 7, "score": 0.5}]
    receipt = {**json.loads(path.read_bytes()), "expected_score": expected, "test_score": 0.9, "sent": sent}
    path.write_text(json.dumps(receipt))
    assert status() == ALL_FRESH
    fields = {"/".join(map(str, field)): field for field in forgeries.list_paths(receipt)}
    fields = {name: field for name, field in fields.items() if not name.startswith(UNREAD)}
    assert len(fields) == 31
    for name, field in fields.items():
        kind = type(forgeries.get(receipt, field))
        changes = [(), *((other,) for other in (None, -5, "x", True, ["x"], {"x": 1}) if type(other) is not kind)]
        for change in changes:
            path.write_text(json.dumps(forgeries.change(receipt, field, *change)))
            valid = change in VALID.get(name, [])
            assert status()["predict"][1] == ("" if valid else "submission.json was deleted or is damaged"), change
    run = stage("all")
    assert run.code == 0 and ran(run) == ["predict"] and status() == ALL_FRESH


def test_accepted_records_can_be_drawn():
    layer = {"limit": 0.5, "counts": [1] * 100, "gradient_mean": 0.1, "gradient_max": 0.2}
    first = layer | {"gradient_mean": None, "gradient_max": None}
    rows = [{"epoch": epoch, "layers": {"a": value, "b": value}} for epoch, value in enumerate((first, layer, layer))]
    for accepted in forge_many({"rows": rows}, schemas.Record):
        internals.layer_histories(accepted["rows"], {"a": "first", "b": "second"})


def test_forged_weights_are_read_or_refused(_tiny, tmp_path):
    path = tmp_path / "weights.safetensors"
    content = (_tiny / "data/runs/quick/train/weights.safetensors").read_bytes()
    refused = 0
    for about, forged in forgeries.forge_weights(content, random.Random(0)):
        path.write_bytes(forged)
        try:
            load_networks(path, "cpu")
        except StageError as error:
            assert "weights.safetensors is damaged" in str(error), about
            refused += 1
    assert refused > 10


def test_forged_arrays_are_read_or_refused(tmp_path):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4) % 10
    for about, content in forgeries.forge_array(array):
        (tmp_path / "array.npy").write_bytes(content)
        try:
            read = store.read_array(tmp_path / "array.npy", "uint8", (3, None), below=10)
        except StageError as error:
            assert "array.npy is damaged" in str(error), about
        else:
            assert read.dtype == np.uint8 and read.shape == (3, 4) and read.max() < 10, about
