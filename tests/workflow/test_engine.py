"""workflow: which stages run, interrupted runs, the lock and logs, through the command line."""

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

from pipeline.reports import style
from pipeline.stages import augment, evaluate
from pipeline.training import classifier
from pipeline.workflow import locks, publishing, store
from tests.conftest import ALL_FRESH, DRAWING, NAMES, TINY, content, ran, stop_after_epoch
from tests.interference import ROOT, interrupt

# Running stages


def test_all_stages_on_the_sample_twice_and_then_one_stage(command, tmp_path):
    """Without data and credentials."""
    options = (*TINY, "--workspace", tmp_path)
    assert ran(command("--stage", "all", *options)) == [*NAMES]
    before = content(tmp_path / "submissions")
    again = command("--stage", "all", *options)
    assert again.code == 0 and ran(again) == [] and "sample data: 5,000 digits" in again.out
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


def test_a_stage_with_stale_inputs_is_refused_and_the_message_names_the_command(stage, tiny):
    run = stage("predict", "--set", "train.epochs=3")
    assert run.code == 2 and run.err.count("\n") == 1
    assert "predict requires train, which is stale (train.epochs 2 -> 3)" in run.err
    assert "--stage train --recipe quick" in run.err and "--set train.epochs=3" in run.err
    shutil.rmtree(tiny / "data/augmented")
    run = stage("evaluate")
    assert run.code == 2 and "--stage augment --recipe quick" in run.err


def test_an_input_that_changes_while_a_stage_runs_prevents_publishing(stage, tiny, monkeypatch):
    (split,) = (tiny / "data/prepared/splits").iterdir()
    original = augment.run

    def run_and_change_input(context):
        numbers = original(context)
        rows = np.load(split / "train_rows.npy")
        np.save(split / "train_rows.npy", rows[::-1])
        return numbers

    before = content(tiny / "data/augmented")
    monkeypatch.setattr(augment, "run", run_and_change_input)
    run = stage("augment")
    assert run.code == 1 and "changed while augment ran" in run.err and run.err.count("\n") == 1
    after = content(tiny / "data/augmented")
    assert {name: after[name] for name in before} == before


def test_a_complete_result_is_published_by_the_next_run_without_running(stage, monkeypatch):
    options = ("evaluate", "--set", "predict.shifts=[[1, 1]]")
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "publish", interrupt)
        assert stage(*options).code == 130
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "run", interrupt)
        assert stage(*options).code == 0
        assert stage(*options).code == 130


def test_a_complete_network_is_published_by_the_next_run_without_training(stage, status, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "publish", interrupt)
        assert stage("train", "--set", "train.seed=3").code == 130
    monkeypatch.setattr("pipeline.training.classifier.fit", interrupt)
    assert stage("train", "--set", "train.seed=3").code == 0
    assert stage("train", "--set", "train.seed=4").code == 130


def test_an_input_that_changed_without_a_trace_is_named_and_nothing_is_published(stage, tiny):
    """A byte of another value at the same place, with the same size, time and inode, as after a fault of the disk."""
    weights, metrics = (
        tiny / "data/runs/quick" / name for name in ("train/weights.safetensors", "evaluate/metrics.json")
    )
    assert stage("train").code == 0  # records the fingerprint of this copy
    times, before = weights.stat(), metrics.read_bytes()
    with open(weights, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    run = stage("evaluate")
    assert run.code == 2 and f"{weights} is damaged: run `--stage train" in run.err and run.err.count("\n") == 1
    assert metrics.read_bytes() == before


def test_force_runs_every_stage_again(stage):
    run = stage("all", "--force")
    assert run.code == 0 and ran(run) == [*NAMES]


def test_force_does_not_publish_what_an_interrupted_run_completed(stage, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.workflow.publishing.publish", interrupt)
        assert stage("evaluate").code == 130
    runs = []
    run_evaluate = evaluate.run
    monkeypatch.setattr(evaluate, "run", lambda context: runs.append(context) or run_evaluate(context))
    assert stage("evaluate", "--force").code == 0 and len(runs) == 1


def test_a_repeated_run_writes_the_same_manifest(stage, tiny, monkeypatch):
    for name, function in DRAWING.items():
        monkeypatch.setattr(style, name, function)
    assert stage("train", "--force").code == 0
    folder = tiny / "data/runs/quick/train"
    before = (folder / "manifest.json").read_bytes()
    assert stage("train", "--force").code == 0
    assert (folder / "manifest.json").read_bytes() == before
    context = json.loads((folder / "context.json").read_text())
    assert context["training_seconds"] > 0 and context["versions"]["torch"] and context["device"] == "cpu"


# Networks


def test_existing_networks_are_collected_without_training_unless_forced(stage, tiny, monkeypatch):
    before = content(tiny / "data/networks")
    trainings = []
    make = classifier.make_initial_network
    monkeypatch.setattr(
        classifier, "make_initial_network", lambda *arguments: trainings.append(arguments[1]) or make(*arguments)
    )
    assert stage("train").code == 0
    assert stage("train", "--set", "train.epochs=1").code == 0 and trainings == [0]
    assert stage("train").code == 0 and trainings == [0]  # settings that come back
    assert {name: data for name, data in content(tiny / "data/networks").items() if name in before} == before
    assert stage("train", "--force").code == 0 and trainings == [0, 0]


def test_an_interrupted_training_continues_when_its_settings_come_back(command, stage, tiny, monkeypatch):
    clean = ("--clean", "--workspace", tiny)
    with monkeypatch.context() as patch:
        stop_after_epoch(patch, 2)
        run = stage("train", "--set", "train.epochs=5")
        assert run.code == 130
        assert "stopped: finished work is kept; the same command continues from there" in run.err
    (partial,) = (tiny / "data/networks").glob("*.partial")
    assert command(*clean).out == "nothing is unused\n"
    run = stage("train", "--set", "train.epochs=1")
    assert "train: an interrupted run is not continued (train.epochs 5 -> 1)" in run.out
    assert f"unused: {partial}\n" in command(*clean).out
    run = stage("train", "--set", "train.epochs=5")
    assert run.code == 0 and "train: continuing after epoch 2" in run.out
    assert not partial.exists()


def test_an_interrupted_training_does_not_continue_with_edited_code(stage, status, monkeypatch, edit_code):
    with monkeypatch.context() as patch:
        stop_after_epoch(patch)
        assert stage("train", "--set", "train.epochs=5").code == 130
    assert status("--set", "train.epochs=5")["train"][1] == "train.epochs 2 -> 5; an interrupted run can continue"
    edit_code("nn/trainer.py")
    assert status("--set", "train.epochs=5")["train"][1] == "train.epochs 2 -> 5"
    assert "an interrupted run is not continued" in stage("train", "--set", "train.epochs=5").out


def test_an_interrupted_first_training_of_a_recipe_file_is_shown(command, tiny, tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "small_cnn"\n[augment]\nangles = [7]\n')
    monkeypatch.setattr("pipeline.training.classifier.fit", interrupt)
    assert command("--stage", "all", "--recipe", file, "--workspace", tiny).code == 130
    run = command("--status", "--workspace", tiny)
    assert "recipe mine" in run.out and "  train     missing  an interrupted run can continue" in run.out
    assert command("--clean", "--workspace", tiny).out == "nothing is unused\n"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_training_and_the_next_run_continues(tiny, look, command, number, code):
    """In a process of its own; the result equals that of an uninterrupted run."""
    # Without a convolution, whose shapes PyTorch infers with a library that it imports in 2 s.
    options = ("--set", 'model.layers=["dense 64", "relu", "dropout"]', "--set", "train.epochs=20", "--device", "cpu")
    arguments = ["--stage", "train", *TINY, *options, "--workspace", str(tiny)]
    process = subprocess.Popen(
        [sys.executable, "run_pipeline.py", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell ignores SIGINT in its background jobs, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(tiny.glob("data/networks/*.partial/history.csv")):
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
    state, reason = look(tiny, *options)["train"]
    assert state == "stale" and reason.endswith("train.epochs 2 -> 20; an interrupted run can continue")
    run = command(*arguments)
    assert run.code == 0 and "train: continuing after epoch" in run.out
    files = [tiny / "data/runs/quick/train" / name for name in ("weights.safetensors", "history.csv")]
    resumed = [file.read_bytes() for file in files]
    assert command(*arguments, "--force").code == 0
    assert [file.read_bytes() for file in files] == resumed


# Lock and logs


def test_a_second_run_is_refused_and_the_message_names_the_first(stage, tiny):
    with locks.lock_workspace(tiny, "train"):
        run = stage("evaluate")
    assert run.code == 1 and run.err.count("\n") == 1
    assert re.search(rf"process {os.getpid()}, stage train, since \d{{4}}-\d\d-\d\d ", run.err)
    assert stage("evaluate").code == 0


def test_status_and_list_need_no_lock_and_import_no_large_library(_tiny):
    code = (
        "import sys; from pipeline.cli.main import main; "
        "codes = [main(['--status', '--workspace', sys.argv[1]]), main(['--list'])]; "
        "large = {'torch', 'numpy', 'pandas', 'scipy', 'sklearn', 'kaggle', 'matplotlib'} & set(sys.modules); "
        "print('large:', sorted(large)); sys.exit(max(codes))"
    )
    command = [sys.executable, "-c", code, str(_tiny)]
    with locks.lock_workspace(_tiny, "train"):
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0 and "large: []" in run.stdout, run.stdout + run.stderr


def test_each_run_writes_a_log_with_a_line_per_epoch(stage, tiny):
    before = set((tiny / "data/logs").iterdir())
    stage("train", "--force")
    (log,) = set((tiny / "data/logs").iterdir()) - before
    text = log.read_text()
    assert "train: done" in text and text.count("train: epoch ") == 2


# --status and --clean


def test_status_shows_the_recipes_with_runs(command, tiny, tmp_path):
    run = command("--status", "--workspace", tiny)
    assert [line for line in run.lines() if line.startswith("recipe")] == ["recipe quick"]
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "layers"\nlayers = ["dense 10"]\n[train]\nepochs = 1\nbatch_size = 64\n')
    assert command("--stage", "all", "--recipe", file, "--workspace", tiny).code == 0
    assert (tiny / "submissions/mine/submission.csv").exists()
    run = command("--status", "--workspace", tiny)
    assert [line for line in run.lines() if line.startswith("recipe")] == ["recipe mine", "recipe quick"]
    assert run.out.count("fresh") == 6 + 3  # of quick, the settings of TINY differ from train on


def test_status_of_an_unknown_recipe(command, tmp_path):
    run = command("--status", "--recipe", "quik", "--workspace", tmp_path)
    assert run.code == 2 and run.err.startswith("error: unknown recipe")


def test_clean_keeps_the_data_of_a_run_with_changed_settings(command, stage, tiny):
    changed = ("--set", "split.seed=3", "--set", "augment.angles=[5]")
    assert stage("all", *changed).code == 0
    clean = command("--clean", "--workspace", tiny, "--yes")
    assert clean.code == 0 and "deleting" in clean.out  # the data of the earlier run
    assert ran(stage("all", *changed)) == []


def test_clean_lists_and_deletes_what_no_recipe_uses(command, stage, tiny):
    stage("augment", "--set", "augment.angles=[5]")
    stage("train", "--set", "train.epochs=1")
    stage("train")  # nothing refers to the network of one epoch any more
    (tiny / "data/runs/quick/train/.manifest.json.1.tmp").write_bytes(b"half")
    with open(tiny / "data/runs/quick/train" / store.WRITTEN, "ab") as names:
        names.write(b".manifest.json.1.tmp\0")
    used = content(tiny / "data/runs/quick/evaluate", tiny / "submissions")
    clean = ("--clean", "--workspace", tiny)
    run = command(*clean)
    unused = [line.removeprefix(f"unused: {tiny}/data/") for line in run.lines() if line.startswith("unused: ")]
    assert run.code == 0 and [name.split("/")[0] for name in unused] == ["augmented", *2 * ["networks"], "runs"]
    assert run.lines()[-1] == "--clean --yes deletes them"
    assert command(*clean, "--yes").code == 0
    assert command(*clean).out == "nothing is unused\n"
    assert content(tiny / "data/runs/quick/evaluate", tiny / "submissions") == used
    assert not (tiny / "data/runs/quick/train/.manifest.json.1.tmp").exists()
    assert ran(stage("all")) == []
