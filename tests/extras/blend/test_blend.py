"""Blends (`--recipe a,b`): the mean of several recipes, evaluated on the rows that all of them hold out."""

import hashlib
import json
import shlex
import shutil

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.extras.blend import stage
from pipeline.recipes import config
from pipeline.workflow import store
from tests import oracles
from tests.conftest import NAMES, TINY, digits_28, write_tables
from tests.contexts import make_context

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
    receipt = json.loads((workspace / "submissions/quick+folded/submission.json").read_text())
    validation = receipt["validation"]
    assert validation["accuracy"] == (expected.argmax(1) == LABELS[rows]).mean()
    assert (validation["rows"], validation["rows_left_out"]) == (100, 300)
    assert "mean of 2 recipes (3 networks)" in receipt["expected_score"]["rests_on"]
    assert receipt["recipe"] == "quick+folded"
    weights = [workspace / f"data/runs/{name}/train/weights.safetensors" for name in ("quick", "folded")]
    assert receipt["sha256"]["weights.safetensors"] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in weights
    ]


def test_the_recipes_have_runs_of_their_own(_blend, command):
    workspace, recipe = _blend
    for name in ("quick", recipe):
        status = command("--status", "--recipe", name, *SETTINGS, "--workspace", workspace).out
        assert status.count("fresh") == len(NAMES)
    again = command("--stage", "all", "--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    assert again.code == 0 and ": running" not in again.out and "blend: fresh" in again.out
    assert "300 rows are left out" in again.out and "submissions/quick+folded/submission.csv" in again.out


@pytest.mark.usefixtures("without_pictures")
def test_a_changed_recipe_makes_the_blend_stale_and_the_reason_names_the_recipe(blend, command):
    workspace, recipe = blend
    options = ("--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    recipe.write_text(recipe.read_text().replace("[train]", "[train]\nseed = 1"))
    for status in (command("--status", *options).out, command("--status", *SETTINGS, "--workspace", workspace).out):
        assert "train     stale    train.seed 0 -> 1" in status
        assert "blend quick+folded: stale (folded: train is stale)" in status
    refused = command("--stage", "blend", *options)
    assert refused.code == 2 and "blend requires train, which is stale (train.seed 0 -> 1)" in refused.err
    assert f"--stage train --recipe {shlex.quote(str(recipe))} " in refused.err
    refused = command("--stage", "submit", *options)
    assert refused.code == 2 and "submit requires blend, which is stale (folded: train is stale)" in refused.err
    assert f"--stage blend --recipe {shlex.quote(f'quick,{recipe}')} " in refused.err
    run = command("--stage", "all", *options)
    assert run.code == 0, run.err
    assert "2 of 2 networks exist" not in run.out and "train: fresh" in run.out and "blend: running" in run.out


def test_a_blend_with_a_recipe_that_is_trained_on_all_rows_has_no_estimate(blend, command):
    workspace, recipe = blend
    recipe.write_text(recipe.read_text().replace("folds = 2", "").replace("[train]", "[train]\nfit_all = true"))
    run = command("--stage", "all", "--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    assert run.code == 0, run.err
    assert "folded was trained on all rows" in run.out and "expected   none: a blend has" in run.out


@pytest.mark.usefixtures("without_pictures")
def test_an_epoch_chosen_on_these_rows_by_one_of_the_recipes_is_mentioned(blend, command):
    workspace, recipe = blend
    recipe.write_text(recipe.read_text().replace('checkpoint_selection = "last"', 'checkpoint_selection = "best"'))
    run = command("--stage", "all", "--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    assert run.code == 0, run.err
    receipt = json.loads((workspace / "submissions/quick+folded/submission.json").read_text())
    assert receipt["validation"]["chosen_on_these_rows"] is True and "the epoch was chosen on these rows" in run.out


def test_rows_are_those_that_all_recipes_hold_out(tmp_path):
    """Three recipes hold out rows 0 to 5, 2 to 7 and 4 to 9 of ten."""
    labels, contexts, expected = np.arange(10, dtype=np.uint8), [], np.zeros((10, 10), np.float32)
    generator = np.random.default_rng(0)
    np.save(tmp_path / "train_labels.npy", labels)
    for first in (0, 2, 4):
        folder = tmp_path / str(first)
        folder.mkdir()
        rows = np.arange(first, first + 6)
        probabilities = generator.dirichlet(np.full(10, 0.2), 6).astype(np.float32)
        expected[rows] += probabilities
        np.save(folder / "rows.npy", rows)
        np.save(folder / "probabilities.npy", probabilities)
        metrics = {
            "rows": 6,
            "n_correct": 1,
            "accuracy": 1 / 6,
            "interval_95": [0.0, 1.0],
            "rests_on": "",
            "classes": [],
        }
        metrics |= {"temperature": 1.0, "chosen_on_these_rows": False, "rows_left_out": 0}
        (folder / "metrics.json").write_text(json.dumps({**metrics, "measured": None, "why_not_measured": ""}))
        files = {f"evaluate/{path.name}": path for path in folder.iterdir()}
        files["prepare/train_labels.npy"] = tmp_path / "train_labels.npy"
        contexts.append(make_context(config.load_recipe("quick"), files, manifests={"train": {"numbers": {}}}))
    evaluation = stage._evaluate(contexts)
    correct = expected[4:6].argmax(1) == labels[4:6]
    assert (evaluation["rows"], evaluation["rows_left_out"]) == (2, 8)
    assert evaluation["accuracy"] == correct.mean()


def test_a_path_with_a_comma_is_one_recipe(command, tmp_path):
    recipe = tmp_path / "a,b" / "mine.toml"
    recipe.parent.mkdir()
    recipe.write_text((config.RECIPES / "quick.toml").read_text())
    assert command("--status", "--recipe", recipe, "--workspace", tmp_path).code == 0


def test_recipe_files_of_one_name_are_refused_before_anything_runs(command, tmp_path, tables):
    write_tables(tmp_path / "work/data/raw", tables)
    files = [tmp_path / folder / "mine.toml" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text((config.RECIPES / "quick.toml").read_text())
    for names in (f"{files[0]},{files[1]}", f"{files[0]},{tmp_path}/a/../a/mine.toml"):
        run = command("--stage", "all", "--recipe", names, "--workspace", tmp_path / "work")
        assert run.code == 2 and "two recipes have the same name" in run.err and not run.out
    assert [path.name for path in (tmp_path / "work/data").iterdir()] == ["raw"]


def test_the_named_commands_are_for_one_of_the_recipes(command, tmp_path):
    options = (*SETTINGS, "--workspace", tmp_path, "--device", "cpu")
    for name, recipes, first in (("submit", "quick,standard", "quick"), ("blend", "ladder", "ladder/lenet")):
        run = command("--stage", name, "--recipe", recipes, *options)
        assert run.code == 2 and f"run `python run_pipeline.py --stage download --recipe {first} " in run.err


@pytest.mark.usefixtures("requests_in_process")
def test_a_blend_is_sent_like_any_submission(blend, command, kaggle, monkeypatch):
    workspace, recipe = blend
    options = ("--recipe", f"quick,{recipe}", *SETTINGS, "--workspace", workspace)
    monkeypatch.setattr("pipeline.stages.submit.POLL_INTERVAL", 0.01)
    for module in ("kaggle.competition", "cli.summary"):  # the test set of a smaller competition
        monkeypatch.setattr(f"pipeline.{module}.TEST_ROWS", 100)
    assert command("--stage", "all", *options, "--force", "--device", "cpu").code == 0
    run = command("--stage", "submit", *options)
    assert run.code == 0, run.err
    assert [*kaggle.uploads.values()] == [(workspace / "submissions/quick+folded/submission.csv").read_bytes()]


@pytest.mark.parametrize(
    ("names", "stage", "message"),
    [
        ("quick,quick", "blend", "occurs twice"),
        ("quick", "blend", "name several recipes"),
        ("quick,", "blend", "unknown recipe ''"),
        ("quick,", "all", "unknown recipe ''"),
        (
            "quick,standard",
            "blend",
            "blend requires train, which is missing because augment is missing: run `python run_pipeline.py "
            "--stage augment --recipe standard ",
        ),
        ("quick,best_of_all", "blend", "unknown recipe 'best_of_all'"),
        ("quick,standard", "predict", "one recipe at a time; --stage all runs each of them and --stage blend averages"),
        ("quick,standard", "inspect", "one recipe at a time"),
    ],
)
def test_recipes_that_cannot_be_blended_are_refused(_blend, command, names, stage, message):
    run = command("--stage", stage, "--recipe", names, *SETTINGS, "--workspace", _blend[0])
    assert run.code == 2 and message in run.err and run.err.count("\n") == 1
