"""Blends (`--recipe a,b`): the mean of several recipes' networks, evaluated on the rows that no network of them saw."""

import json
import shlex
import shutil

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.recipes import config
from pipeline.workflow import store
from tests import oracles
from tests.conftest import TINY, digits_28, write_tables

IMAGES, LABELS = digits_28(500)
SETTINGS = (*TINY[2:], "--set", "train.precision=fp32")


def predict_each(workspace, recipe, images):
    """(probabilities, metadata) of each network of a recipe."""
    return oracles.predict_each(workspace / f"data/runs/{recipe}/train/weights.safetensors", images)


@pytest.fixture(scope="module")
def _blend(tables, tmp_path_factory):
    """A workspace in which `quick,folded` has run: a validation split of 100 rows, and two folds of all 400 rows."""
    folder = tmp_path_factory.mktemp("blend")
    recipe = folder / "folded.toml"
    text = (config.RECIPES / "quick.toml").read_text()
    recipe.write_text(text.replace("learning_rate = 0.004", "learning_rate = 0.01") + "\n[split]\nfolds = 2\n")
    write_tables(folder / "workspace/data/raw", tables)
    options = [*SETTINGS, "--workspace", str(folder / "workspace"), "--device", "cpu"]
    assert main(["--stage", "all", "--recipe", f"quick,{recipe}", *options]) == 0
    return folder / "workspace", recipe


@pytest.fixture
def blend(_blend, tmp_path):
    """A copy of the workspace and of the recipe file, for tests that change them."""
    workspace, recipe = (
        shutil.copytree(_blend[0], tmp_path / "blend"),
        shutil.copy(_blend[1], tmp_path / _blend[1].name),
    )
    for path in workspace.rglob(store.CONTEXT):  # as if it had been made with the copy of the recipe
        path.write_text(path.read_text().replace(str(_blend[1]), str(recipe)))
    return workspace, recipe


def test_the_submission_is_the_mean_over_recipes_of_the_mean_over_networks(_blend):
    workspace, _ = _blend
    expected = (
        sum(
            np.mean([probabilities for probabilities, _ in predict_each(workspace, recipe, IMAGES[400:])], axis=0)
            for recipe in ("quick", "folded")
        )
        / 2
    )
    folder = workspace / "submissions/quick+folded"
    assert np.load(folder / "probabilities.npy") == pytest.approx(expected, abs=1e-4)
    labels = [int(line.split(",")[1]) for line in (folder / "submission.csv").read_text().split()[1:]]
    assert labels == expected.argmax(1).tolist()


def test_a_row_is_evaluated_with_the_networks_of_each_recipe_that_did_not_see_it(_blend):
    workspace, _ = _blend
    splits = {len(np.load(path)): path for path in workspace.glob("data/prepared/splits/*/validation_rows.npy")}
    rows, folds = np.load(splits[100]), np.load(splits[400].with_name("folds.npy"))
    ((quick, _),) = predict_each(workspace, "quick", IMAGES[rows])
    folded = np.zeros((100, 10))
    for probabilities, metadata in predict_each(workspace, "folded", IMAGES[rows]):
        folded[folds[rows] == metadata["fold"]] = probabilities[folds[rows] == metadata["fold"]]
    expected = (quick + folded) / 2
    folder = workspace / "data/runs/quick+folded/evaluate"
    assert np.array_equal(np.load(folder / "rows.npy"), rows)
    assert np.load(folder / "probabilities.npy") == pytest.approx(expected, abs=1e-4)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["accuracy"] == (expected.argmax(1) == LABELS[rows]).mean()
    assert metrics["n_correct"] == (expected.argmax(1) == LABELS[rows]).sum()
    assert (metrics["rows"], metrics["rows_left_out"], metrics["networks"]) == (100, 300, 3)
    receipt = json.loads((workspace / "submissions/quick+folded/submission.json").read_text())
    assert "mean of 2 recipes (3 networks)" in receipt["expected_score"]["rests_on"]
    assert receipt["recipe"] == "quick+folded"


def test_its_parts_are_the_runs_of_the_recipes(_blend, command):
    workspace, recipe = _blend
    for name in ("quick", recipe):
        status = command("--status", "--recipe", name, *SETTINGS, "--workspace", workspace).out
        assert "train     fresh" in status and "predict   missing" in status
    again = command("--stage", "all", "--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    assert again.code == 0 and ": running" not in again.out
    assert "300 rows are left out" in again.out and "submissions/quick+folded/submission.csv" in again.out


@pytest.mark.usefixtures("without_pictures")
def test_a_changed_recipe_makes_the_blend_stale_and_the_reason_names_the_recipe(blend, command):
    workspace, recipe = blend
    blend_options = ("--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    recipe.write_text(recipe.read_text().replace("[train]", "[train]\nseed = 1"))
    status = command("--status", *blend_options).out
    assert "train     stale    train.seed 0 -> 1" in status and "predict   stale" in status
    refused = command("--stage", "predict", *blend_options)
    assert refused.code == 2 and "predict requires train, which is stale (train.seed 0 -> 1)" in refused.err
    assert f"--stage train --recipe {shlex.quote(f'quick,{recipe}')}" in refused.err
    run = command("--stage", "all", *blend_options)
    assert run.code == 0, run.err
    assert "2 of 2 networks exist" not in run.out and "train: fresh" in run.out


def test_a_blend_with_a_recipe_that_is_trained_on_all_rows_has_no_estimate(blend, command):
    workspace, recipe = blend
    recipe.write_text(recipe.read_text().replace("folds = 2", "").replace("[train]", "[train]\nfit_all = true"))
    run = command("--stage", "all", "--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    assert run.code == 0, run.err
    assert "folded was trained on all rows" in run.out


@pytest.mark.usefixtures("without_pictures")
def test_an_epoch_chosen_on_these_rows_by_one_of_the_recipes_is_mentioned(blend, command):
    workspace, recipe = blend
    recipe.write_text(recipe.read_text().replace('checkpoint_selection = "last"', 'checkpoint_selection = "best"'))
    run = command("--stage", "all", "--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    assert run.code == 0, run.err
    metrics = json.loads((workspace / "data/runs/quick+folded/evaluate/metrics.json").read_text())
    assert metrics["chosen_on_these_rows"] is True and "the epoch was chosen on these rows" in run.out


def test_a_path_with_a_comma_is_one_recipe(command, tmp_path):
    recipe = tmp_path / "a,b" / "mine.toml"
    recipe.parent.mkdir()
    recipe.write_text((config.RECIPES / "quick.toml").read_text())
    assert command("--status", "--recipe", recipe, "--workspace", tmp_path).code == 0


@pytest.mark.usefixtures("requests_in_process")
def test_a_blend_is_sent_like_any_submission(blend, command, kaggle, monkeypatch):
    workspace, recipe = blend
    options = ("--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    monkeypatch.setattr("pipeline.stages.submit.POLL_INTERVAL", 0.01)
    for module in ("kaggle.competition", "stages.predict", "cli.summary"):  # the test set of a smaller competition
        monkeypatch.setattr(f"pipeline.{module}.TEST_ROWS", 100)
    for stage in (("predict", "--device", "cpu"), ("submit",)):
        run = command("--stage", *stage, *options)
        assert run.code == 0, run.err
    assert [*kaggle.uploads.values()] == [(workspace / "submissions/quick+folded/submission.csv").read_bytes()]


@pytest.mark.parametrize(
    ("names", "stage", "message"),
    [
        ("quick,quick", "predict", "occurs twice"),
        (
            "quick,standard",
            "predict",
            "predict requires train, which is missing because augment is missing: run `python run_pipeline.py "
            "--stage augment --recipe quick,standard",
        ),
        ("quick,best_of_all", "predict", "unknown recipe 'best_of_all'"),
        ("quick,standard", "inspect", "choose one recipe"),
    ],
)
def test_recipes_that_cannot_be_blended_are_refused(_blend, command, names, stage, message):
    run = command("--stage", stage, "--recipe", names, *SETTINGS, "--workspace", _blend[0])
    assert run.code == 2 and message in run.err and run.err.count("\n") == 1
