"""Folds and ensembles: members against plain trainings, out-of-fold figures by hand, what is kept and what is not."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import run_pipeline
from pipeline import digits, metrics, recipe
from pipeline.models import load_weights
from pipeline.settings import Split
from pipeline.stages import fitting, members
from tests.conftest import SHORT, digits_28, write_tables
from tests.test_train import fit

ROOT = Path(__file__).parent.parent
IMAGES, LABELS = digits_28(500)
# Two folds, two seeds: four networks. In fp32, so that they can be compared with plain computations.
FOUR = (*SHORT, "--set", "train.precision=fp32", "--set", "split.folds=2", "--set", "ensemble.seeds=2")
NAMES = [f"small_cnn-seed{seed}-fold{fold}" for seed in (0, 1) for fold in (0, 1)]


@pytest.fixture(scope="module")
def _trained(tmp_path_factory, tables):
    workspace = tmp_path_factory.mktemp("ensemble")
    write_tables(workspace / "data" / "raw", tables)
    assert run_pipeline.main(["--stage", "all", *FOUR, "--workspace", str(workspace), "--device", "cpu"]) == 0
    return workspace


@pytest.fixture
def trained(_trained, tmp_path):
    """A workspace of one's own in which `--stage all` with FOUR has run."""
    return shutil.copytree(_trained, tmp_path / "ensemble")


def folds_of(workspace):
    (folds,) = workspace.glob("data/prepared/splits/*/folds.npy")
    return np.load(folds)


def weights_of(workspace):
    tensors = safetensors.torch.load_file(workspace / "data/runs/quick/train/weights.safetensors")
    names = dict.fromkeys(name.split("/")[0] for name in tensors)
    return {
        name: {key.split("/")[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        for name in names
    }


def members_of(workspace):
    """Name of each member's folder, and when its manifest was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in workspace.glob("data/members/*/manifest.json")}


def of_one(network, images):
    network.eval()
    with torch.no_grad():
        return network(torch.from_numpy(images)[:, None].float() / 255).softmax(1).numpy()


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 7), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), min_size=200, max_size=300))
def test_each_row_is_held_out_once_and_every_label_in_every_fold(count, seed, labels):
    labels = np.array([*range(10)] * 7 + labels, np.uint8)
    folds = digits.folds(labels, Split(folds=count, seed=seed))
    assert folds.shape == labels.shape and set(folds) == set(range(count))
    for digit in range(10):
        sizes = np.bincount(folds[labels == digit], minlength=count)
        assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(folds, digits.folds(labels, Split(folds=count, seed=seed, fraction=0.5)))


def test_another_split_seed_gives_other_folds():
    assert not np.array_equal(digits.folds(LABELS, Split(folds=3)), digits.folds(LABELS, Split(folds=3, seed=1)))


def test_members_are_every_model_with_every_seed_on_every_fold():
    made = recipe.load(
        "quick", ["split.folds=2", "ensemble.seeds=2", "train.seed=5", 'ensemble.models=["small_cnn", "medium_cnn"]']
    )
    names = [member.name for member in members.plan(made)]
    assert sorted(names) == sorted(
        f"{model}-seed{seed}-fold{fold}" for model in ("small_cnn", "medium_cnn") for seed in (5, 6) for fold in (0, 1)
    )
    assert members.plan(recipe.load("quick")) == []
    (alone,) = members.plan(recipe.load("quick", ['ensemble.models=["medium_cnn"]']))
    assert alone.name == "medium_cnn-seed0"


@pytest.mark.parametrize("setting", ["split.seed=1", "augment.angles=[5]", "affine.shift=1", "train.epochs=3"])
def test_what_a_member_is_trained_on_and_how_has_a_place_of_its_own(tmp_path, setting):
    one, other = (members.places(tmp_path, recipe.load("quick", ["split.folds=2", *more])) for more in ([], [setting]))
    assert not set(one) & set(other)
    assert set(one) < set(members.places(tmp_path, recipe.load("quick", ["split.folds=2", "ensemble.seeds=2"])))


def test_a_member_is_a_plain_training_on_the_rows_of_the_other_folds(trained):
    """Bit for bit the network that the loop gives for these rows and this seed, with one thread."""
    folds, found = folds_of(trained), weights_of(trained)
    assert sorted(found) == NAMES
    made = recipe.load("quick", FOUR[3::2])
    threads = torch.get_num_threads()
    torch.set_num_threads(made.ensemble.threads)
    try:
        for name in NAMES:
            seed, fold = int(name[-7]), int(name[-1])
            parts = [
                (torch.from_numpy(IMAGES[:400][rows]), torch.from_numpy(LABELS[:400][rows].astype(np.int64)))
                for rows in (folds != fold, folds == fold)
            ]
            one = dataclasses.replace(made.train, seed=seed)
            state, history, _ = fit(one, made.affine, made.model, parts[0], validation=parts[1])
            assert all(torch.equal(state[key], tensor) for key, tensor in found[name].items())
            rows = list(csv.DictReader((trained / "data/runs/quick/train/history.csv").open()))
            mine = [row for row in rows if row.pop("member") == name]
            assert mine == list(csv.DictReader(fitting.as_csv(history).decode().splitlines()))
    finally:
        torch.set_num_threads(threads)


def test_out_of_fold_figures_by_hand(trained):
    folder, folds = trained / "data/runs/quick", folds_of(trained)
    networks = load_weights(folder / "train/weights.safetensors", "cpu")
    wanted = np.zeros((400, 10))
    for fold in (0, 1):
        mine = [network for network, about in networks if about["fold"] == fold]
        assert len(mine) == 2
        wanted[folds == fold] = sum(of_one(network, IMAGES[:400][folds == fold]) for network in mine) / 2
    assert np.load(folder / "evaluate/probabilities.npy") == pytest.approx(wanted, abs=1e-4)
    right = wanted.argmax(1) == LABELS[:400]
    found = json.loads((folder / "evaluate/metrics.json").read_text())
    assert (found["rows"], found["right"], found["networks"]) == (400, int(right.sum()), 4)
    assert found["interval_95"] == list(metrics.wilson(int(right.sum()), 400))
    each = [right[folds == fold].mean() for fold in (0, 1)]
    assert found["folds"]["each"] == each
    assert found["folds"]["mean"] == np.mean(each)
    assert found["folds"]["deviation"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    alone = [
        (of_one(network, IMAGES[:400][folds == about["fold"]]).argmax(1) == LABELS[:400][folds == about["fold"]]).mean()
        for network, about in networks
    ]
    assert found["network_accuracy"]["each"] == alone
    first = next(csv.DictReader((folder / "evaluate/suspects.csv").open()))
    assert int(first["row"]) == wanted[np.arange(400), LABELS[:400]].argmin() + 1
    for name in ("suspects.png", "mistakes.png", "confusion.png"):
        assert (folder / "evaluate" / name).read_bytes().startswith(b"\x89PNG")


def test_the_submission_averages_all_networks_and_says_what_its_score_rests_on(trained, command):
    networks = load_weights(trained / "data/runs/quick/train/weights.safetensors", "cpu")
    wanted = np.mean([of_one(network, IMAGES[400:]) for network, _ in networks], axis=0)
    folder = trained / "submissions/quick"
    assert np.load(folder / "probabilities.npy") == pytest.approx(wanted, abs=1e-4)
    labels = [int(line.split(",")[1]) for line in (folder / "submission.csv").read_text().split()[1:]]
    assert labels == wanted.argmax(1).tolist()
    expected = json.loads((folder / "submission.json").read_text())["expected_score"]
    assert "400 out-of-fold rows" in expected["rests_on"] and "lower bound" in expected["rests_on"]
    shown = command("--stage", "all", *FOUR, "--workspace", trained).out
    assert "out-of-fold" in shown and "lower bound" in shown


def test_adding_members_keeps_those_that_are_there(trained, command):
    before, first = members_of(trained), (trained / "data/runs/quick/train/weights.safetensors").read_bytes()
    place = (*FOUR, "--workspace", trained, "--device", "cpu")
    run = command("--stage", "train", *place, "--set", "ensemble.seeds=3")
    assert run.code == 0 and "4 of 6 members are there" in run.out
    after = members_of(trained)
    assert len(after) == 6 and before.items() <= after.items()
    assert len(weights_of(trained)) == 6
    run = command("--stage", "train", *place)
    assert run.code == 0 and "4 of 4 members are there" in run.out
    assert members_of(trained) == after
    assert (trained / "data/runs/quick/train/weights.safetensors").read_bytes() == first


def test_only_what_is_damaged_or_forced_is_trained_again(trained, command):
    before = members_of(trained)
    first = (trained / "data/runs/quick/train/weights.safetensors").read_bytes()
    damaged = next(path for path in before if path.startswith("small_cnn-seed1-fold0"))
    (trained / "data/members" / damaged / "weights.safetensors").write_bytes(b"none")
    place = (*FOUR, "--workspace", trained, "--device", "cpu")
    assert command("--stage", "train", *place).code == 0
    after = members_of(trained)
    assert {name for name in after if after[name] != before[name]} == {damaged}
    assert (trained / "data/runs/quick/train/weights.safetensors").read_bytes() == first
    assert command("--stage", "train", *place, "--force").code == 0
    assert all(when != after[name] for name, when in members_of(trained).items())
    assert (trained / "data/runs/quick/train/weights.safetensors").read_bytes() == first


def test_a_recipe_of_another_name_shares_members(trained, command, tmp_path):
    mine = tmp_path / "mine.toml"
    shutil.copy(recipe.RECIPES / "quick.toml", mine)
    before = members_of(trained)
    run = command("--stage", "all", "--recipe", mine, *FOUR[2:], "--workspace", trained, "--device", "cpu")
    assert run.code == 0 and "4 of 4 members are there" in run.out
    assert members_of(trained) == before


def test_clean_keeps_members_in_use_and_removes_the_others(trained, command):
    place = ("--workspace", trained)
    assert "members" not in command("--clean", *place, *FOUR[2:]).out
    unused = command("--clean", *place, *FOUR[2:], "--set", "ensemble.seeds=1").out
    lines = [line for line in unused.splitlines() if "data/members/" in line and not line.endswith(".lock")]
    assert len(lines) == 2 and all("-seed1-" in line for line in lines)
    assert command("--clean", "--yes", *place, *FOUR[2:], "--set", "ensemble.seeds=1").code == 0
    assert sorted(name.rsplit("-", 1)[0] for name in members_of(trained)) == NAMES[:2]


def test_clean_keeps_the_members_of_a_stopped_run(trained, command):
    partial = trained / "data/runs/quick/train.partial"
    partial.mkdir()
    (partial / members.NAMES).write_text(json.dumps({"folders": [*members_of(trained)]}))
    assert "data/members/" not in command("--clean", "--workspace", trained, *FOUR[2:], "--set", "ensemble.seeds=1").out


def test_members_whose_inputs_changed_meanwhile_are_not_published(trained, command, monkeypatch):
    before = members_of(trained)
    (labels,) = trained.glob("data/augmented/*/labels.npy")
    run = members._run

    def disturbed(*arguments):
        for result in run(*arguments):
            labels.write_bytes(labels.read_bytes()[:-1] + b"\x09")
            yield result

    monkeypatch.setattr(members, "_run", disturbed)
    place = (*FOUR, "--workspace", trained, "--device", "cpu")
    found = command("--stage", "train", *place, "--set", "ensemble.seeds=3")
    assert found.code == 1 and f"{labels} changed while train ran" in found.err
    assert members_of(trained) == before


def test_seeds_without_folds_are_measured_on_the_validation_rows(finished, command):
    place = (*SHORT, "--set", "train.precision=fp32", "--set", "ensemble.seeds=2", "--workspace", finished)
    assert command("--stage", "all", *place, "--device", "cpu").code == 0
    networks = load_weights(finished / "data/runs/quick/train/weights.safetensors", "cpu")
    (rows,) = (np.load(path) for path in finished.glob("data/prepared/splits/*/validation_rows.npy"))
    wanted = np.mean([of_one(network, IMAGES[:400][rows]) for network, _ in networks], axis=0)
    assert np.load(finished / "data/runs/quick/evaluate/probabilities.npy") == pytest.approx(wanted, abs=1e-4)
    found = json.loads((finished / "data/runs/quick/evaluate/metrics.json").read_text())
    assert found["accuracy"] == (wanted.argmax(1) == LABELS[:400][rows]).mean()
    assert found["networks"] == 2 and "folds" not in found


def test_an_ensemble_on_all_rows_of_two_models(finished, command):
    more = ("ensemble.models=['small_cnn', 'medium_cnn']", "train.fit_all=true", "train.epochs=1")
    words = [word for one in more for word in ("--set", one)]
    run = command("--stage", "all", *SHORT, *words, "--workspace", finished, "--device", "cpu")
    assert run.code == 0, run.err
    assert {name.split("-")[0] for name in weights_of(finished)} == {"small_cnn", "medium_cnn"}
    assert "validation accuracy: none" in run.out and "expected score: none" in run.out


@pytest.mark.parametrize(
    "setting, words",
    [
        ("split.folds=1", "nothing would be left to train on"),
        ("ensemble.models=['no_cnn']", "ensemble.models is ['no_cnn']"),
        ("ensemble.models=['small_cnn', 'small_cnn']", "ensemble.models names one twice"),
        ("estimate.rows=0", "estimate.seeds requires estimate.rows"),
        ("split.folds=399", "split.folds is 399"),
        ("split.folds=60", "needs one for each fold"),
    ],
)
def test_what_cannot_be_is_refused(finished, command, setting, words):
    run = command("--stage", "all", *SHORT, "--set", setting, "--workspace", finished)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1


def test_folds_and_all_rows_exclude_each_other(command):
    run = command("--stage", "all", *SHORT, "--set", "split.folds=2", "--set", "train.fit_all=true")
    assert run.code == 2 and "leave one out" in run.err


HOLD = """
import pathlib, sys, time
from pipeline.stages import workers
with workers.free_gpu(pathlib.Path(sys.argv[1]), 2) as number:
    print(number, flush=True)
    time.sleep(60)
"""


def test_processes_take_different_gpus_also_after_one_was_killed(tmp_path):
    """Of two GPUs, a process that is started anew takes the one that is free, whichever that is."""

    def hold():
        file = tmp_path / f"process {len(processes)}"
        process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=file.open("w"), cwd=ROOT)
        processes.append(process)
        end = time.monotonic() + 30
        while not file.read_text():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        return int(file.read_text())

    processes = []
    try:
        assert [hold(), hold()] == [0, 1]
        processes[1].kill()
        processes[1].wait()
        assert hold() == 1
        processes[0].kill()
        processes[0].wait()
        assert hold() == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_worker_whose_parent_is_gone_stops():
    members._stop_if_alone(os.getppid())
    members._stop_if_alone(os.getpid())
    with pytest.raises(members.ParentGone):
        members._stop_if_alone(2**22 + 1)
