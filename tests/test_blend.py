"""Blends of finished recipes: the mean by hand, what it rests on, and what is refused."""

import json
import shutil

import numpy as np
import pytest

import run_pipeline
from pipeline import metrics, recipe
from tests.conftest import SHORT, digits_28

LABELS = digits_28(500)[1]
WORDS = SHORT[2:]


@pytest.fixture(scope="module")
def _two(_finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    workspace = shutil.copytree(_finished, folder / "workspace")
    mine = folder / "mine.toml"
    mine.write_text((recipe.RECIPES / "quick.toml").read_text().replace("small_cnn", "medium_cnn"))
    words = ["--stage", "all", "--recipe", mine, *WORDS, "--workspace", workspace, "--device", "cpu"]
    assert run_pipeline.main([str(word) for word in words]) == 0
    return workspace, mine


@pytest.fixture
def two(_two, tmp_path):
    """A workspace of one's own in which quick and another recipe, mine.toml, have run; and that recipe's file."""
    workspace, mine = _two
    return shutil.copytree(workspace, tmp_path / "two"), shutil.copy(mine, tmp_path / mine.name)


def test_the_mean_of_two_recipes(two, command):
    workspace, mine = two
    place = ("--recipe", f"quick,{mine}", *WORDS, "--workspace", workspace)
    run = command("--stage", "predict", *place)
    assert run.code == 0, run.err
    folder = workspace / "submissions/quick+mine"
    parts = [np.load(workspace / "submissions" / name / "probabilities.npy") for name in ("quick", "mine")]
    wanted = (parts[0] + parts[1]) / 2
    assert np.load(folder / "probabilities.npy") == pytest.approx(wanted, abs=1e-6)
    labels = [int(line.split(",")[1]) for line in (folder / "submission.csv").read_text().split()[1:]]
    assert labels == wanted.argmax(1).tolist()

    held = [np.load(workspace / f"data/runs/{name}/evaluate/probabilities.npy") for name in ("quick", "mine")]
    (rows,) = (np.load(path) for path in workspace.glob("data/prepared/splits/*/validation_rows.npy"))
    right = int(((held[0] + held[1]).argmax(1) == LABELS[:400][rows]).sum())
    receipt = json.loads((folder / "submission.json").read_text())
    assert receipt["validation"]["accuracy"] == right / 100
    assert receipt["expected_score"]["interval_95"] == list(metrics.expected_score(right, 100, 100))
    assert "mean of 2 recipes" in receipt["expected_score"]["rests_on"]
    assert receipt["recipe"] == "quick+mine"
    assert "submissions/quick+mine/submission.csv" in run.out

    # It is a result like others: fresh, and stale where a part of it changed.
    assert "predict   fresh" in command("--status", *place).out
    again = (folder / "submission.csv").read_bytes()
    more = (*WORDS, "--set", "train.seed=1", "--workspace", workspace, "--device", "cpu")
    assert command("--stage", "all", "--recipe", mine, *more).code == 0
    assert "stale" in command("--status", *place).out
    refused = command("--stage", "predict", *place)
    assert refused.code == 2 and "of mine is stale" in refused.err
    assert (folder / "submission.csv").read_bytes() == again


def test_a_blend_of_which_one_is_trained_on_all_rows_has_no_estimate(two, command):
    workspace, mine = two
    mine.write_text(mine.read_text().replace("[train]", "[train]\nfit_all = true"))
    run = command("--stage", "all", "--recipe", mine, *WORDS, "--workspace", workspace, "--device", "cpu")
    assert run.code == 0, run.err
    run = command("--stage", "predict", "--recipe", f"quick,{mine}", *WORDS, "--workspace", workspace)
    assert run.code == 0, run.err
    assert "mine was trained on all rows" in run.out


def test_settings_of_a_call_count_for_the_parts_too(two, command, kaggle):
    workspace, mine = two
    place = ("--recipe", f"quick,{mine}", *WORDS, "--workspace", workspace)
    assert command("--stage", "predict", *place).code == 0
    other = (*place, "--set", "train.seed=5")
    assert "of quick is stale (train.seed 0 -> 5)" in command("--status", *other).out
    for stage in ("predict", "submit"):
        run = command("--stage", stage, *other)
        assert run.code == 2 and "of quick is stale" in run.err
        assert f"--stage all --recipe quick --workspace {workspace}" in run.err and "--set train.seed=5" in run.err
    assert not kaggle.uploads


def test_a_path_with_a_comma_is_one_recipe(command, tmp_path):
    mine = tmp_path / "a,b"
    mine.mkdir()
    (mine / "mine.toml").write_text((recipe.RECIPES / "quick.toml").read_text())
    assert command("--status", "--recipe", mine / "mine.toml", "--workspace", tmp_path).code == 0


def test_a_blend_is_sent_like_any_submission(sendable, command, kaggle, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text((recipe.RECIPES / "quick.toml").read_text().replace("[train]", "[train]\nseed = 1"))
    more = (*WORDS, "--workspace", sendable)
    assert command("--stage", "all", "--recipe", mine, *more, "--device", "cpu").code == 0
    assert command("--stage", "predict", "--recipe", f"quick,{mine}", *more).code == 0
    run = command("--stage", "submit", "--recipe", f"quick,{mine}", *more)
    assert run.code == 0, run.err
    assert [*kaggle.uploads.values()] == [(sendable / "submissions/quick+mine/submission.csv").read_bytes()]


@pytest.mark.parametrize(
    "names, stage, words",
    [
        ("quick,quick", "predict", "stands twice"),
        ("quick,standard", "predict", "evaluate of standard is missing: run `--stage all --recipe standard --work"),
        ("quick,best_of_all", "predict", "there is no recipe 'best_of_all'"),
        ("quick,standard", "all", "a blend is for --stage predict and submit"),
    ],
)
def test_what_cannot_be_blended(finished, command, names, stage, words):
    run = command("--stage", stage, "--recipe", names, *WORDS, "--workspace", finished)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1


def test_recipes_with_different_splits_are_refused(two, command):
    workspace, mine = two
    mine.write_text(mine.read_text() + "\n[split]\nseed = 1\n")
    run = command("--stage", "predict", "--recipe", f"quick,{mine}", *WORDS, "--workspace", workspace)
    assert run.code == 2 and "different splits" in run.err
    shutil.rmtree(workspace / "submissions")
