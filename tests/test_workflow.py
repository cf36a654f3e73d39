"""workflow: what is fresh, stale or missing and why, and which stages run, through the command line."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pipeline import cli, store, training_task
from pipeline.stages import STAGES, augment, train
from tests.conftest import TINY, forge, write_tables
from tests.interference import ROOT

NAMES = ("download", "prepare", "augment", "train", "evaluate", "predict")
ALL_FRESH = dict.fromkeys(NAMES, ("fresh", ""))


@pytest.fixture(scope="module")
def _finished(tables, tmp_path_factory):
    """A workspace in which `--stage all` with TINY has run; tests do not change it."""
    workspace = tmp_path_factory.mktemp("finished")
    write_tables(workspace / "data/raw", tables)
    assert cli.main(["--stage", "all", *TINY, "--workspace", str(workspace), "--device", "cpu"]) == 0
    return workspace


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
def status(look, finished):
    return lambda *options: look(finished, *options)


@pytest.fixture
def stage(command, finished):
    """Run a stage in a copy of the workspace: `stage("train", *options)`."""
    return lambda name, *options: command("--stage", name, *TINY, *options, "--workspace", finished)


@pytest.fixture
def no_training(monkeypatch):
    """Make every training fail."""
    monkeypatch.setattr("pipeline.training_task.fit", None)


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def ran(run):
    """The names of the stages that ran."""
    return [line.split(":")[0] for line in run.lines() if ": running" in line]


def content(*folders):
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


# Freshness


def test_everything_is_fresh_and_nothing_runs_again(status, stage, finished, no_training):
    assert status() == ALL_FRESH
    folders = finished / "data/runs", finished / "data/networks", finished / "submissions"
    before = content(*folders)
    run = stage("all")
    assert run.code == 0 and ran(run) == []
    assert content(*folders) == before


def test_status_of_an_empty_workspace(command, tmp_path):
    run = command("--status", "--workspace", tmp_path)
    assert run.code == 0 and "no recipe has runs yet" in run.out
    assert run.out.count("missing") == len(NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("assignment", "first", "reason"),
    [
        ("train.epochs=3", "train", "train.epochs 2 -> 3"),
        ("train.seed=1", "train", "train.seed 0 -> 1"),
        ("affine.rotation=3", "train", "affine.rotation 10.0 -> 3.0"),
        ("predict.shifts=[[1, 1]]", "evaluate", "predict.shifts [[0, 0]] -> [[1, 1]]"),
        ("prepare.allow_overlap=true", "prepare", "prepare.allow_overlap false -> true"),
    ],
)
def test_a_setting_makes_stale_the_stages_that_read_it_and_all_that_follow(look, _finished, assignment, first, reason):
    states = look(_finished, "--set", assignment)
    index = NAMES.index(first)
    assert [states[name][0] for name in NAMES] == ["fresh"] * index + ["stale"] * (len(NAMES) - index)
    assert states[first][1] == reason


def test_settings_that_no_result_depends_on_make_nothing_stale(look, _finished):
    assert (
        look(_finished, "--set", "submit.message=hello", "--set", "submit.wait=false", "--device", "cpu") == ALL_FRESH
    )
    assert look(_finished, "--set", "train.record=true") == ALL_FRESH


def test_each_split_and_each_augmentation_has_its_own_folder(status, stage):
    assert status("--set", "split.seed=1")["prepare"][0] == "missing"
    assert status("--set", "augment.angles=[5]")["augment"][0] == "missing"
    stage("augment", "--set", "augment.angles=[5]")
    assert status()["augment"][0] == "fresh"
    assert status("--set", "augment.angles=[5]")["train"] == ("stale", "augment.angles [] -> [5.0]")


def test_results_of_an_earlier_version_are_stale_and_its_download_is_valid(status, stage, finished):
    folders = [path.parent for path in finished.rglob(store.MANIFEST)]
    for folder in folders:
        forge(folder, lambda manifest: manifest.pop("format"))
    reason = "made by an earlier version of the pipeline"
    assert status() == {"download": ("fresh", "")} | dict.fromkeys(NAMES[1:], ("stale", reason))
    raw = content(finished / "data/raw")
    run = stage("all")
    assert f"train: running, {reason}" in run.out and ran(run) == [*NAMES[1:]]
    assert content(finished / "data/raw") == raw and status() == ALL_FRESH


FILES = {
    "data/runs/quick/train/weights.safetensors": "train",
    "data/runs/quick/evaluate/metrics.json": "evaluate",
    "submissions/quick/submission.csv": "predict",
    "data/prepared/arrays/train_images.npy": "prepare",
}


@pytest.mark.parametrize("harm", ["edit", "cut", "delete"])
def test_a_result_that_was_changed_by_hand_is_stale(status, stage, finished, harm):
    """And is made again with the same content; of several changed results at once, each."""
    contents = {finished / file: (finished / file).read_bytes() for file in FILES}
    for (path, good), name in zip(contents.items(), FILES.values(), strict=True):
        changed = {"edit": good[:-1] + bytes([good[-1] ^ 1]), "cut": good[:-1]}
        path.unlink()
        if harm != "delete":
            path.write_bytes(changed[harm])
        reason = "was deleted" if harm == "delete" else "was changed after it was written"
        assert status()[name] == ("stale", f"{path.name} {reason}")
        path.write_bytes(good)
        assert status() == ALL_FRESH
    for path in contents:
        path.unlink()
        if harm != "delete":
            path.write_bytes(b"?")
    run = stage("all")
    assert run.code == 0 and ran(run) == ["prepare", "train", "evaluate", "predict"]
    assert {path: path.read_bytes() for path in contents} == contents
    assert status() == ALL_FRESH


@pytest.mark.parametrize(("file", "name"), [*FILES.items(), ("submissions/quick/submission.json", "predict")])
def test_only_the_changed_result_is_made_again(stage, finished, no_training, file, name):
    """From the existing networks, and the stages after it stay fresh, since the content is the same."""
    (finished / file).unlink()
    assert ran(stage("all")) == [name]


def test_the_receipt_may_change_but_not_be_damaged(status, stage, finished):
    """`submit` writes the score into it."""
    receipt = finished / "submissions/quick/submission.json"
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "sent": [{"score": 1}]}))
    assert status() == ALL_FRESH
    receipt.write_text("{")
    assert status()["predict"] == ("stale", "submission.json was deleted or is damaged")
    assert ran(stage("all")) == ["predict"]


def test_a_result_with_a_damaged_manifest_is_missing(status, stage, finished):
    (finished / "data/runs/quick/train/manifest.json").write_text("{")
    assert status()["train"] == ("missing", "manifest.json is damaged")
    assert stage("all").code == 0
    assert status() == ALL_FRESH


@pytest.mark.parametrize("settings", [5, {"train": 5}, {"train.epochs": [[]]}])
def test_status_accepts_any_manifest(status, finished, settings):
    forge(finished / "data/runs/quick/train", lambda manifest: manifest.update(settings=settings))
    assert status()["train"][0] == "stale"


def test_new_raw_data_make_everything_stale(status, stage, finished, no_training):
    path = finished / "data/raw/test.csv"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert {state for state, _ in status().values()} == {"stale"}
    assert ran(stage("all")) == ["download", "prepare", "predict"]  # the training data are the same


def test_a_published_result_in_previous_counts_and_is_restored(status, stage, finished):
    folder = finished / "data/runs/quick/train"
    folder.rename(folder.with_name("train.previous"))
    assert status() == ALL_FRESH
    assert ran(stage("all")) == []
    assert (folder / "weights.safetensors").exists()


# Running stages


def test_all_stages_on_the_sample_twice_and_then_one_stage(command, tmp_path):
    """Without data and credentials."""
    options = (*TINY, "--workspace", tmp_path)
    assert ran(command("--stage", "all", *options)) == [*NAMES]
    before = content(tmp_path / "submissions")
    again = command("--stage", "all", *options)
    assert again.code == 0 and ran(again) == [] and "THIS IS SAMPLE DATA" in again.out
    assert ran(command("--stage", "predict", *options)) == ["predict"]
    after = content(tmp_path / "submissions")
    assert before.keys() == after.keys()
    assert all(after[name] == before[name] for name in before if not name.endswith("context.json"))


def test_all_shows_the_reason_and_runs_what_is_stale(stage):
    run = stage("all", "--set", "train.epochs=3")
    assert "train: running, train.epochs 2 -> 3" in run.out and "prepare: fresh" in run.out
    assert ran(run) == ["train", "evaluate", "predict"]
    assert ran(stage("all", "--set", "train.epochs=3")) == []


def test_the_stages_after_one_with_an_unchanged_result_stay_fresh(stage):
    assert ran(stage("all", "--set", "prepare.allow_overlap=true")) == ["prepare"]


def test_a_stage_that_is_requested_by_name_always_runs_and_alone(stage, status):
    assert ran(stage("evaluate")) == ["evaluate"]
    assert status() == ALL_FRESH


def test_a_stage_with_stale_inputs_is_refused_and_the_message_names_the_command(stage, finished):
    run = stage("predict", "--set", "train.epochs=3")
    assert run.code == 2 and run.err.count("\n") == 1
    assert "predict requires train, which is stale (train.epochs 2 -> 3)" in run.err
    assert "--stage train --recipe quick" in run.err and "--set train.epochs=3" in run.err
    shutil.rmtree(finished / "data/augmented")
    run = stage("evaluate")
    assert run.code == 2 and "--stage augment --recipe quick" in run.err


def test_an_input_that_changes_while_a_stage_runs_prevents_publishing(stage, finished, monkeypatch):
    (split,) = (finished / "data/prepared/splits").iterdir()
    original = augment.run

    def run_and_change_input(context):
        numbers = original(context)
        rows = np.load(split / "train_rows.npy")
        np.save(split / "train_rows.npy", rows[::-1])
        return numbers

    before = content(finished / "data/augmented")
    monkeypatch.setitem(STAGES, "augment", dataclasses.replace(augment.STAGE, run=run_and_change_input))
    run = stage("augment")
    assert run.code == 1 and "changed while augment ran" in run.err and run.err.count("\n") == 1
    after = content(finished / "data/augmented")
    assert {name: after[name] for name in before} == before


def test_a_complete_result_is_published_by_the_next_run_without_running(stage, monkeypatch):
    options = ("evaluate", "--set", "predict.shifts=[[1, 1]]")
    with monkeypatch.context() as patch:
        patch.setattr(store, "publish", interrupt)
        assert stage(*options).code == 130
    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "evaluate", dataclasses.replace(STAGES["evaluate"], run=interrupt))
        assert stage(*options).code == 0
        assert stage(*options).code == 130


def test_a_complete_network_is_published_by_the_next_run_without_training(stage, status, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "publish", interrupt)
        assert stage("train", "--set", "train.seed=3").code == 130
    monkeypatch.setattr("pipeline.training_task.fit", interrupt)
    assert stage("train", "--set", "train.seed=3").code == 0
    assert stage("train", "--set", "train.seed=4").code == 130


def test_force_runs_every_stage_again(stage):
    run = stage("all", "--force")
    assert run.code == 0 and ran(run) == [*NAMES]


def test_a_repeated_run_writes_the_same_manifest(stage, finished):
    folder = finished / "data/runs/quick/train"
    before = (folder / "manifest.json").read_bytes()
    assert stage("train", "--force").code == 0
    assert (folder / "manifest.json").read_bytes() == before
    context = json.loads((folder / "context.json").read_text())
    assert context["training_seconds"] > 0 and context["versions"]["torch"] and context["device"] == "cpu"


# Networks


def test_existing_networks_are_collected_without_training_unless_forced(stage, finished, monkeypatch):
    before = content(finished / "data/networks")
    trainings = []
    make = training_task.make_initial_network
    monkeypatch.setattr(
        training_task, "make_initial_network", lambda *arguments: trainings.append(arguments[1]) or make(*arguments)
    )
    assert stage("train").code == 0
    assert stage("train", "--set", "train.epochs=1").code == 0 and trainings == [0]
    assert stage("train").code == 0 and trainings == [0]  # settings that come back
    assert {name: data for name, data in content(finished / "data/networks").items() if name in before} == before
    assert stage("train", "--force").code == 0 and trainings == [0, 0]


def test_an_interrupted_training_continues_when_its_settings_come_back(command, stage, finished, monkeypatch):
    def interrupt_second_epoch(monitor, task, history):
        if len(history) == 2:
            raise KeyboardInterrupt

    clean = ("--clean", "--workspace", finished)
    with monkeypatch.context() as patch:
        patch.setattr(train._Monitor, "on_epoch", interrupt_second_epoch)
        run = stage("train", "--set", "train.epochs=5")
        assert run.code == 130
        assert "stopped: finished work is kept; the same command continues from there" in run.err
    (partial,) = (finished / "data/networks").glob("*.partial")
    assert command(*clean).out == "nothing is unused\n"
    run = stage("train", "--set", "train.epochs=1")
    assert "train: an interrupted run is not continued (train.epochs 5 -> 1)" in run.out
    assert f"unused: {partial}\n" in command(*clean).out
    run = stage("train", "--set", "train.epochs=5")
    assert run.code == 0 and "train: continuing after epoch 2" in run.out
    assert not partial.exists()


def test_an_interrupted_first_training_of_a_recipe_file_is_shown(command, finished, tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "small_cnn"\n[augment]\nangles = [7]\n')
    monkeypatch.setattr("pipeline.training_task.fit", interrupt)
    assert command("--stage", "all", "--recipe", file, "--workspace", finished).code == 130
    run = command("--status", "--workspace", finished)
    assert "recipe mine" in run.out and "  train     missing  an interrupted run can continue" in run.out
    assert command("--clean", "--workspace", finished).out == "nothing is unused\n"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_training_and_the_next_run_continues(finished, look, command, number, code):
    """In a process of its own; the result equals that of an uninterrupted run."""
    # Without a convolution, whose shapes PyTorch infers with a library that it imports in 2 s.
    options = ("--set", 'model.layers=["dense 64", "relu", "dropout"]', "--set", "train.epochs=20", "--device", "cpu")
    arguments = ["--stage", "train", *TINY, *options, "--workspace", str(finished)]
    process = subprocess.Popen(
        [sys.executable, "run_pipeline.py", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell ignores SIGINT in its background jobs, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(finished.glob("data/networks/*.partial/history.csv")):
        time.sleep(0.02)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    start = time.monotonic()
    message = process.stderr.readline()
    assert time.monotonic() - start < 5
    assert process.wait(30) == code  # on a busy machine, Python takes seconds to unload PyTorch
    stopped = "stopped: finished work is kept; the same command continues from there\n"
    assert message + process.stderr.read() == ("" if number == signal.SIGKILL else stopped)
    process.stderr.close()
    state, reason = look(finished, *options)["train"]
    assert state == "stale" and reason.endswith("train.epochs 2 -> 20; an interrupted run can continue")
    run = command(*arguments)
    assert run.code == 0 and "train: continuing after epoch" in run.out
    files = [finished / "data/runs/quick/train" / name for name in ("weights.safetensors", "history.csv")]
    resumed = [file.read_bytes() for file in files]
    assert command(*arguments, "--force").code == 0
    assert [file.read_bytes() for file in files] == resumed


# Lock and logs


def test_a_second_run_is_refused_and_the_message_names_the_first(stage, finished):
    with store.lock_workspace(finished, "train"):
        run = stage("evaluate")
    assert run.code == 1 and run.err.count("\n") == 1
    assert re.search(rf"process {os.getpid()}, stage train, since \d{{4}}-\d\d-\d\d ", run.err)
    assert stage("evaluate").code == 0


def test_status_and_list_need_no_lock_and_import_no_large_library(_finished):
    code = (
        "import sys; from pipeline import cli; "
        "codes = [cli.main(['--status', '--workspace', sys.argv[1]]), cli.main(['--list'])]; "
        "large = {'torch', 'numpy', 'pandas', 'scipy', 'sklearn', 'kaggle', 'matplotlib'} & set(sys.modules); "
        "print('large:', sorted(large)); sys.exit(max(codes))"
    )
    command = [sys.executable, "-c", code, str(_finished)]
    with store.lock_workspace(_finished, "train"):
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0 and "large: []" in run.stdout, run.stdout + run.stderr


def test_each_run_writes_a_log_with_a_line_per_epoch(stage, finished):
    before = set((finished / "data/logs").iterdir())
    stage("train", "--force")
    (log,) = set((finished / "data/logs").iterdir()) - before
    text = log.read_text()
    assert "train: done" in text and text.count("train: epoch ") == 2


# --status and --clean


def test_status_shows_the_recipes_with_runs(command, finished, tmp_path):
    run = command("--status", "--workspace", finished)
    assert [line for line in run.lines() if line.startswith("recipe")] == ["recipe quick"]
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "layers"\nlayers = ["dense 10"]\n[train]\nepochs = 1\nbatch_size = 64\n')
    assert command("--stage", "all", "--recipe", file, "--workspace", finished).code == 0
    assert (finished / "submissions/mine/submission.csv").exists()
    run = command("--status", "--workspace", finished)
    assert [line for line in run.lines() if line.startswith("recipe")] == ["recipe mine", "recipe quick"]
    assert run.out.count("fresh") == 6 + 3  # of quick, the settings of TINY differ from train on


def test_status_of_an_unknown_recipe(command, tmp_path):
    run = command("--status", "--recipe", "quik", "--workspace", tmp_path)
    assert run.code == 2 and run.err.startswith("error: unknown recipe")


def test_clean_lists_and_deletes_what_no_recipe_uses(command, stage, finished):
    stage("augment", "--set", "augment.angles=[5]")
    stage("train", "--set", "train.epochs=1")
    stage("train")  # nothing refers to the network of one epoch any more
    (finished / "data/augmented/.images.npy.1.tmp").write_bytes(b"half")
    used = content(finished / "data/runs", finished / "submissions")
    clean = ("--clean", "--workspace", finished)
    run = command(*clean)
    unused = [line.removeprefix(f"unused: {finished}/data/") for line in run.lines() if line.startswith("unused: ")]
    assert run.code == 0 and [name.split("/")[0] for name in unused] == [*2 * ["augmented"], *2 * ["networks"]]
    assert run.lines()[-1] == "--clean --yes deletes them"
    assert command(*clean, "--yes").code == 0
    assert command(*clean).out == "nothing is unused\n"
    assert content(finished / "data/runs", finished / "submissions") == used
    assert ran(stage("all")) == []
