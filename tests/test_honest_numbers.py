"""Honest numbers: no measured row was trained on, no test label affects a choice, and every setting has an effect."""

import ast
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from pipeline import ROOT
from pipeline.recipes import config
from pipeline.recipes.settings import SECTIONS
from tests.conftest import ENSEMBLE, TINY, as_csv, digits_28, mnist_files, write_tables

DRAWS = True
WEIGHTS, HISTORY = "data/runs/quick/train/weights.safetensors", "data/runs/quick/train/history.csv"
SUBMISSION = "submissions/quick/submission.csv"
IMAGES, LABELS = digits_28(500)


def train_table(images):
    """train.csv with these images and the labels of the small tables."""
    header = ["label", *(f"pixel{i}" for i in range(784))]
    return as_csv(header, np.column_stack([LABELS[:400], images.reshape(400, 784)]).tolist())


def test_validation_rows_influence_neither_augmentation_nor_weights(command, tiny, tmp_path):
    """Their pixels are replaced by noise: only the figures that are measured on them change."""
    (path,) = tiny.glob("data/prepared/splits/*/validation_rows.npy")
    images, rows = IMAGES[:400].copy(), np.load(path)
    images[rows] = np.random.default_rng(0).integers(0, 256, (len(rows), 28, 28))
    other = shutil.copytree(tiny, tmp_path / "other")
    (other / "data/raw/train.csv").write_bytes(train_table(images))
    run = command("--stage", "all", *TINY, "--workspace", other, "--device", "cpu")
    assert run.code == 0, run.err
    assert np.array_equal(np.load(other / path.relative_to(tiny)), rows)
    augmented = [path.relative_to(tiny) for path in tiny.glob("data/augmented/*/*.npy")]
    assert len(augmented) == 2
    for name in (*augmented, WEIGHTS, SUBMISSION):
        assert (tiny / name).read_bytes() == (other / name).read_bytes()
    before, after = (pd.read_csv(workspace / HISTORY) for workspace in (tiny, other))
    assert (before.train_loss == after.train_loss).all()
    assert (before.validation_loss != after.validation_loss).all()


def test_a_fold_does_not_influence_the_networks_that_hold_it_out(command, ensemble, tmp_path):
    """The rows of the first fold are inverted: only the networks that were trained on them change."""
    (path,) = ensemble.glob("data/prepared/splits/*/folds.npy")
    images, is_first = IMAGES[:400].copy(), np.load(path) == 0
    images[is_first] = 255 - images[is_first]
    other = tmp_path / "other"
    tables = {path.name: path.read_bytes() for path in (ensemble / "data/raw").glob("*.csv")}
    write_tables(other / "data/raw", tables | {"train.csv": train_table(images)})
    for stage in ("download", "prepare", "augment", "train"):
        assert command("--stage", stage, *ENSEMBLE, "--workspace", other, "--device", "cpu").code == 0
    is_equal = {}
    for name in ("layers-seed0-fold0", "layers-seed1-fold0", "layers-seed0-fold1", "layers-seed1-fold1"):
        paths = [next(workspace.glob(f"data/networks/{name}-*/weights.safetensors")) for workspace in (ensemble, other)]
        is_equal[name] = paths[0].read_bytes() == paths[1].read_bytes()
    assert list(is_equal.values()) == [True, True, False, False]


def test_test_labels_influence_nothing_but_the_score(command, tmp_path):
    """Two sources differ in the test labels only: all results are the same except the score."""
    results = {}
    for name, offset in (("right", 0), ("wrong", 1)):
        files, labels = mnist_files(60, 20, offset)
        source = write_tables(tmp_path / name / "mnist", files)
        run = command("--stage", "all", *TINY, "--workspace", tmp_path / name, "--data", source, "--device", "cpu")
        assert run.code == 0, run.err
        results[name] = {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.suffix in (".npy", ".safetensors", ".png", ".csv") and path.name != "test_labels.csv"
        }
        folder = tmp_path / name / "submissions/quick"
        score = json.loads((folder / "submission.json").read_text())["test_score"]
        assert score == np.mean(pd.read_csv(folder / "submission.csv").Label == labels)
    assert len(results["right"]) > 12 and results["right"] == results["wrong"]


def test_predictions_follow_their_rows(command, tiny):
    """The test rows in another order have the same predictions in that order."""
    before = pd.read_csv(tiny / SUBMISSION).Label.to_numpy()
    path = tiny / "data/raw/test.csv"
    header, *lines = path.read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    path.write_text("\n".join([header, *(lines[row] for row in order)]) + "\n")
    run = command("--stage", "all", *TINY, "--workspace", tiny, "--device", "cpu")
    assert run.code == 0 and "train: fresh" in run.out
    after = pd.read_csv(tiny / SUBMISSION)
    assert (after.ImageId == np.arange(1, len(lines) + 1)).all()
    assert (after.Label == before[order]).all()


# For each setting a value that differs from that of `quick` with TINY.
CHANGED_VALUES = {
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
    "model.layers": '["relu", "dropout"]',
    "model.pixels": "centred",
    "model.pretrained": "imagenet",
    "model.side": "64",
    "model.frozen": "features",
    "ensemble.models": '["layers", "medium_cnn"]',
    "ensemble.views": '["even"]',
    "ensemble.seeds": "2",
    "ensemble.threads": "3",
    "train.epochs": "3",
    "train.batch_size": "32",
    "train.optimizer": "adam",
    "train.learning_rate": "0.1",
    "train.muon_learning_rate": "0.5",
    "train.momentum": "0.5",
    "train.lr_gamma": "0.5",
    "train.steps": "[[2, 0.5]]",
    "train.weight_decay": "0.5",
    "train.schedule": "constant",
    "train.warmup": "0.5",
    "train.label_smoothing": "0.3",
    "train.hard_example_fraction": "0.9",
    "train.swa_fraction": "0.4",
    "train.ema_decay": "0.4",
    "train.fit_all": "true",
    "train.softmax_before_loss": "true",
    "train.checkpoint_selection": "best",
    "train.precision": "fp32",
    "train.deterministic": "true",
    "train.seed": "7",
    "predict.shifts": "[[1, 1]]",
    "predict.shift_margin": "0.5",
}
# Settings of the stages that run on demand, and what only observes a training.
ON_DEMAND = ("compare", "explore", "gan", "generate", "inspect", "notebook", "published", "submit")
TESTED_ELSEWHERE = {f"{name}.{field}" for name in ON_DEMAND for field in SECTIONS[name].model_fields}
TESTED_ELSEWHERE |= config.OBSERVATIONAL


def setting_names():
    return {f"{name}.{field}" for name, section in SECTIONS.items() for field in section.model_fields}


def test_every_setting_has_a_changed_value():
    assert setting_names() - TESTED_ELSEWHERE == CHANGED_VALUES.keys()


@pytest.mark.parametrize("name", CHANGED_VALUES)
def test_every_setting_makes_a_result_stale_or_is_refused(command, _tiny, name):
    layers = ("--set", "model.layers=[]") if name == "model.name" else ()
    options = (*TINY, "--set", f"{name}={CHANGED_VALUES[name]}", *layers)
    run = command("--status", *options, "--workspace", _tiny)
    if run.code:
        assert run.code == 2 and name in run.err
    else:
        assert "stale" in run.out or "missing" in run.out


def test_every_setting_is_read_as_an_attribute():
    """A setting that no code reads would be accepted and ignored."""
    attributes = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path.name != "settings.py":
            tree = ast.parse(path.read_text())
            attributes |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in setting_names() if name.partition(".")[2] not in attributes} == set()
