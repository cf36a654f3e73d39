"""Nothing that is measured was trained on, nothing that chooses reads the answers, and every setting does something."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import recipe
from pipeline.settings import SECTIONS, Inspect, Published
from tests.conftest import SHORT, as_csv, digits_28, write_tables
from tests.test_bad_input import IDX, LABELS, idx

WORDS = (*SHORT, "--device", "cpu")


def whole(command, workspace, *more):
    run = command("--stage", "all", *WORDS, *more, "--workspace", workspace)
    assert run.code == 0, run.err


def rows_of(workspace, name):
    (split,) = (workspace / "data/prepared/splits").iterdir()
    return np.load(split / f"{name}.npy")


def table_with(images, labels):
    header = ["label", *(f"pixel{i}" for i in range(784))]
    return as_csv(header, np.column_stack([labels, images.reshape(len(images), -1)]).tolist())


@pytest.fixture
def poisoned(command, finished, tmp_path):
    """The finished run, and one from the same rows but for the pixels of the validation rows, which are noise."""
    images, labels = digits_28(500)
    spoiled = images[:400].copy()
    held = rows_of(finished, "validation_rows")
    spoiled[held] = np.random.default_rng(0).integers(0, 256, (len(held), 28, 28))
    tables = {path.name: path.read_bytes() for path in (finished / "data/raw").glob("*.csv")}
    other = tmp_path / "poisoned"
    write_tables(other / "data/raw", tables | {"train.csv": table_with(spoiled, labels[:400])})
    whole(command, other)
    assert np.array_equal(rows_of(other, "validation_rows"), held)
    return finished, other


def test_validation_rows_reach_neither_augmentation_nor_training(poisoned):
    one, two = poisoned
    for name in ("images.npy", "labels.npy"):
        (here,), (there,) = ((place / "data/augmented").glob(f"*/{name}") for place in poisoned)
        assert here.read_bytes() == there.read_bytes()
    weights, submissions = "data/runs/quick/train/weights.safetensors", "submissions/quick/submission.csv"
    for path in (weights, submissions):
        assert (one / path).read_bytes() == (two / path).read_bytes()
    here, there = (pd.read_csv(place / "data/runs/quick/train/history.csv") for place in poisoned)
    assert (here.train_loss == there.train_loss).all()
    assert (here.validation_loss != there.validation_loss).all()


def test_a_fold_reaches_no_network_that_holds_it_out(command, finished, tmp_path):
    """The rows of the first fold poisoned: the first network is what it was, and the other is not."""
    folds = ("--set", "split.folds=2", "--set", "train.epochs=1")
    whole(command, finished, *folds)
    (split,) = (path.parent for path in (finished / "data/prepared/splits").glob("*/folds.npy"))
    first = np.load(split / "folds.npy") == 0
    images, labels = digits_28(500)
    spoiled = images[:400].copy()
    spoiled[first] = 255 - spoiled[first]
    tables = {path.name: path.read_bytes() for path in (finished / "data/raw").glob("*.csv")}
    other = tmp_path / "poisoned"
    write_tables(other / "data/raw", tables | {"train.csv": table_with(spoiled, labels[:400])})
    whole(command, other, *folds)
    same = {}
    for fold in (0, 1):
        one, two = (
            next((place / "data/members").glob(f"*fold{fold}*/weights.safetensors")) for place in (finished, other)
        )
        same[fold] = one.read_bytes() == two.read_bytes()
    assert same == {0: True, 1: False}


def test_nothing_that_trains_or_chooses_reads_the_test_labels(command, tmp_path):
    """Two sources that differ in the answers alone: all that is made is the same, but for the score."""
    made = {}
    for name, answers in (("right", LABELS[60:]), ("wrong", (LABELS[60:] + 1) % 10)):
        source = write_tables(tmp_path / name / "mnist", IDX | {"t10k-labels-idx1-ubyte": idx(answers)})
        whole(command, tmp_path / name, "--data", source)
        made[name] = {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.suffix in (".npy", ".safetensors", ".png", ".csv") and path.name != "test_labels.csv"
        }
    assert len(made["right"]) > 12 and made["right"] == made["wrong"]
    for name, answers in (("right", LABELS[60:]), ("wrong", (LABELS[60:] + 1) % 10)):
        folder = tmp_path / name / "submissions/quick"
        score = json.loads((folder / "submission.json").read_text())["test_score"]
        assert score == np.mean(pd.read_csv(folder / "submission.csv").Label == answers)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_predictions_follow_their_rows(command, finished, order):
    """The test rows in another order give the same answers in that order."""
    before = pd.read_csv(finished / "submissions/quick/submission.csv").Label.to_numpy()
    path = finished / "data/raw/test.csv"
    header, *lines = path.read_text().splitlines()
    moved = np.arange(len(lines))[::-1] if order == "reversed" else np.random.default_rng(0).permutation(len(lines))
    path.write_text("\n".join([header, *(lines[row] for row in moved)]) + "\n")
    whole(command, finished)
    after = pd.read_csv(finished / "submissions/quick/submission.csv")
    assert (after.ImageId == np.arange(1, len(lines) + 1)).all()
    assert (after.Label == before[moved]).all()


# Of each setting: another value than quick's with SHORT. What it changes is tested where it is used.
OTHERS = {
    "prepare.allow_overlap": "true",
    "split.seed": "1",
    "split.fraction": "0.3",
    "split.folds": "2",
    "augment.shifts": "[[1, 0]]",
    "augment.angles": "[5]",
    "augment.zooms": "[1.1]",
    "affine.rotation": "3",
    "affine.shift": "1",
    "affine.zoom": "0.3",
    "affine.shear": "1",
    "affine.flip": "true",
    "model.name": "medium_cnn",
    "model.dropout": "0.5",
    "model.view": "deskewed",
    "model.layers": '["relu"]',
    "model.pixels": "centred",
    "ensemble.models": '["small_cnn", "medium_cnn"]',
    "ensemble.views": '["even"]',
    "ensemble.seeds": "2",
    "ensemble.threads": "3",
    "train.epochs": "3",
    "train.batch": "32",
    "train.optimizer": "adam",
    "train.learning_rate": "0.1",
    "train.muon_rate": "0.5",
    "train.momentum": "0.5",
    "train.decay": "0.5",
    "train.steps": "[[2, 0.5]]",
    "train.weight_decay": "0.5",
    "train.schedule": "constant",
    "train.warmup": "0.5",
    "train.label_smoothing": "0.3",
    "train.focus": "0.9",
    "train.average": "0.4",
    "train.average_decay": "0.4",
    "train.fit_all": "true",
    "train.softmax_before_loss": "true",
    "train.keep": "best",
    "train.precision": "fp32",
    "train.deterministic": "true",
    "train.seed": "7",
    "predict.shifts": "[[1, 1]]",
    "estimate.accuracy": "0.5",
    "estimate.deviation": "0.5",
    "estimate.seeds": "0",
    "estimate.rows": "7",
    "estimate.training_rows": "7",
    "estimate.date": '"1999-01-01"',
    "estimate.data": '"x"',
    "estimate.settings": '"x"',
}
# They change what `submit` does, what `compare`, `explore` and `inspect` show: tests of these.
RECORDED_ONLY = {"submit.message", "submit.wait", "explore.rows", "explore.seed", "train.record"}
RECORDED_ONLY |= {f"inspect.{name}" for name in vars(Inspect())}
RECORDED_ONLY |= {f"published.{name}" for name in vars(Published())}


def fields():
    return {f"{section}.{f.name}" for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)}


def test_no_setting_is_forgotten_here():
    assert fields() - RECORDED_ONLY == OTHERS.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_makes_something_stale_or_is_refused(command, finished, name):
    run = command("--status", *WORDS, "--set", f"{name}={OTHERS[name]}", "--workspace", finished)
    if run.code:
        assert run.code == 2 and name in run.err
    else:
        assert "stale" in run.out or "missing" in run.out or str(as_is(name)) == OTHERS[name]


def as_is(name):
    section, key = name.split(".")
    return getattr(getattr(recipe.load("quick", SHORT[3::2]), section), key)


def test_every_setting_is_read_somewhere():
    """By the pipeline's own code, as an attribute: a setting that nobody reads would be accepted and ignored."""
    read = set()
    for path in Path("pipeline").rglob("*.py"):
        if path.name != "settings.py":
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    whole_sections = {"estimate"}  # evaluate reads its fields by name
    unread = {name for name in fields() if name.split(".")[1] not in read and name.split(".")[0] not in whole_sections}
    assert not unread
