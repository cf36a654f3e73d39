"""Fresh, stale and missing, through the real command line on a finished small run."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import artifacts
from pipeline.stages import augment
from tests.conftest import SHORT

ALL = ("download", "prepare", "augment", "train", "evaluate", "predict")


@pytest.fixture
def status(command, finished):
    """Each stage's state by name, with the reason."""

    def look(*more):
        run = command("--status", *SHORT, *more, "--workspace", finished)
        assert run.code == 0
        rows = [line.split(None, 2) for line in run.lines()[1:]]
        return {row[0]: (row[1], row[2] if len(row) > 2 else "") for row in rows}

    return look


@pytest.fixture
def stage(command, finished):
    return lambda name, *more: command("--stage", name, *SHORT, *more, "--workspace", finished)


def ran(run):
    return [line.split(":")[0] for line in run.lines() if ": running" in line]


def content(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_everything_is_fresh_and_nothing_runs_again(status, stage, finished):
    assert status() == dict.fromkeys(ALL, ("fresh", ""))
    before = content(finished / "data/runs") | content(finished / "submissions")
    run = stage("all")
    assert run.code == 0 and ran(run) == []
    assert content(finished / "data/runs") | content(finished / "submissions") == before


def test_an_empty_workspace(command, tmp_path):
    run = command("--status", "--workspace", tmp_path)
    assert run.code == 0 and "none has runs yet" in run.out
    assert run.out.count("missing") == len(ALL)
    assert list(tmp_path.iterdir()) == []


def test_the_sample_twice_and_then_one_stage_again(command, tmp_path):
    """With no data and no credentials: the first run makes everything, the second nothing."""
    place = (*SHORT, "--workspace", tmp_path)
    assert ran(command("--stage", "all", *place)) == list(ALL)
    before = content(tmp_path / "submissions")
    again = command("--stage", "all", *place)
    assert again.code == 0 and ran(again) == [] and "THIS IS SAMPLE DATA" in again.out
    assert ran(command("--stage", "predict", *place)) == ["predict"]
    after = content(tmp_path / "submissions")
    assert before.keys() == after.keys()
    assert all(after[name] == before[name] for name in before if not name.endswith("context.json"))


@pytest.mark.parametrize(
    ("assignment", "first", "why"),
    [
        ("train.epochs=3", "train", "train.epochs 2 -> 3"),
        ("train.seed=1", "train", "train.seed 0 -> 1"),
        ("affine.rotation=3", "train", "affine.rotation 10.0 -> 3.0"),
        ("predict.shifts=[[1, 1]]", "evaluate", "predict.shifts [[0, 0]] -> [[1, 1]]"),
        ("prepare.allow_overlap=true", "prepare", "prepare.allow_overlap false -> true"),
    ],
)
def test_a_setting_makes_stale_what_reads_it_and_what_follows(status, assignment, first, why):
    found = status("--set", assignment)
    at = ALL.index(first)
    assert [found[name][0] for name in ALL] == ["fresh"] * at + ["stale"] * (len(ALL) - at)
    assert found[first][1] == why


def test_split_and_augment_have_folders_of_their_own(status, stage):
    assert status("--set", "split.seed=1")["prepare"][0] == "missing"
    assert status("--set", "augment.angles=[5]")["augment"][0] == "missing"
    stage("augment", "--set", "augment.angles=[5]")
    assert status()["augment"][0] == "fresh"
    assert status("--set", "augment.angles=[5]")["train"] == ("stale", "augment.angles [] -> [5.0]")


def test_what_is_only_recorded_makes_nothing_stale(status):
    found = status("--set", "submit.message=hello", "--set", "submit.wait=false", "--device", "cpu")
    assert set(found.values()) == {("fresh", "")}


def test_a_stage_whose_result_comes_out_the_same_leaves_the_next_fresh(stage):
    run = stage("all", "--set", "prepare.allow_overlap=true")
    assert ran(run) == ["prepare"]


def test_all_says_why_and_runs_what_is_needed(stage):
    run = stage("all", "--set", "train.epochs=3")
    assert "train: running, train.epochs 2 -> 3" in run.out and "prepare: fresh" in run.out
    assert ran(run) == ["train", "evaluate", "predict"]
    assert ran(stage("all", "--set", "train.epochs=3")) == []


def test_a_stage_by_name_runs_always_and_alone(stage, status):
    assert ran(stage("evaluate")) == ["evaluate"]
    assert set(status().values()) == {("fresh", "")}


def test_a_stage_refuses_where_its_needs_are_stale_and_names_the_mend(stage, finished):
    run = stage("predict", "--set", "train.epochs=3")
    assert run.code == 2 and run.err.count("\n") == 1
    assert "predict needs train, which is stale (train.epochs 2 -> 3)" in run.err
    assert "--stage train --recipe quick" in run.err and "--set train.epochs=3" in run.err
    shutil.rmtree(finished / "data/augmented")
    run = stage("evaluate")
    assert "--stage augment --recipe quick" in run.err


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("data/runs/quick/train/weights.safetensors", "train"),
        ("data/runs/quick/evaluate/metrics.json", "evaluate"),
        ("submissions/quick/submission.csv", "predict"),
        ("submissions/quick/submission.json", "predict"),
        ("data/prepared/arrays/train_images.npy", "prepare"),
    ],
)
@pytest.mark.parametrize("harm", ["edit", "cut", "delete"])
def test_a_result_changed_by_hand_is_seen_and_mended(status, stage, finished, file, name, harm):
    path = finished / file
    good = path.read_bytes()
    if harm == "delete":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(good[:-1])
    else:
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    if file.endswith("submission.json") and harm != "delete":
        return  # the receipt may change: submit writes the score into it
    assert status()[name][0] == "stale"
    assert path.name in status()[name][1]
    run = stage("all")
    assert run.code == 0 and name in ran(run)
    if not file.endswith("submission.json"):
        assert path.read_bytes() == good
    assert set(status().values()) == {("fresh", "")}


def test_a_garbage_manifest_is_missing_with_a_word_why(status, stage, finished):
    (finished / "data/runs/quick/train/manifest.json").write_text("{")
    assert status()["train"] == ("missing", "manifest.json is damaged")
    assert stage("all").code == 0
    assert set(status().values()) == {("fresh", "")}


def test_new_raw_data_makes_everything_stale(status, stage, finished):
    path = finished / "data/raw/test.csv"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert {how for how, _ in status().values()} == {"stale"}
    assert ran(stage("all")) == ["download", "prepare", "predict"]  # training data are what they were


def test_an_input_that_changes_while_a_stage_runs_is_not_published(stage, finished, monkeypatch):
    (split,) = (finished / "data/prepared/splits").iterdir()
    run_whole = augment.run

    def meddle(job):
        numbers = run_whole(job)
        rows = np.load(split / "train_rows.npy")
        np.save(split / "train_rows.npy", rows[::-1])
        return numbers

    before = content(finished / "data/augmented")
    monkeypatch.setattr(augment, "run", meddle)
    run = stage("augment")
    assert run.code == 1 and "changed while augment ran" in run.err and run.err.count("\n") == 1
    after = content(finished / "data/augmented")
    assert {name: after[name] for name in before} == before


def test_a_published_result_left_in_previous_still_counts(status, stage, finished):
    place = finished / "data/runs/quick/train"
    place.rename(place.with_name("train.previous"))
    assert set(status().values()) == {("fresh", "")}
    assert ran(stage("all")) == []
    assert (place / "weights.safetensors").exists()


def test_a_run_stopped_before_publishing_is_published_without_running(stage, finished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "publish", lambda place: (_ for _ in ()).throw(KeyboardInterrupt))
        assert stage("train", "--set", "train.seed=3").code == 130
    monkeypatch.setattr("pipeline.training.fit", None)  # would fail if it were called
    assert stage("train", "--set", "train.seed=3").code == 0


def test_force_runs_everything_anew(stage):
    run = stage("all", "--force")
    assert run.code == 0 and ran(run) == list(ALL)


def test_a_second_run_says_who_holds_the_workspace(stage, finished):
    lock = artifacts.Lock(finished / "data/.lock")
    lock.acquire({"stage": "train", "since": "2026-01-01 12:00:00"})
    run = stage("all")
    assert run.code == 1 and run.err.count("\n") == 1
    assert "stage train, since 2026-01-01 12:00:00" in run.err
    lock.release()
    assert stage("all").code == 0


def test_status_and_list_take_no_lock_and_import_neither_torch_nor_pandas(finished):
    code = (
        "import sys, run_pipeline; code = run_pipeline.main(sys.argv[1:]); "
        "heavy = {'torch', 'pandas', 'scipy', 'sklearn', 'kaggle', 'matplotlib'} & set(sys.modules); "
        "print('heavy:', sorted(heavy)); sys.exit(code)"
    )
    lock = artifacts.Lock(finished / "data/.lock")
    lock.acquire({"stage": "train"})
    for words in (["--status", "--workspace", str(finished)], ["--list"]):
        run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert run.returncode == 0 and "heavy: []" in run.stdout, run.stdout + run.stderr
    lock.release()


def test_status_without_a_recipe_shows_those_with_runs(command, finished):
    run = command("--status", "--workspace", finished)
    assert [line for line in run.lines() if line.startswith("recipe")] == ["recipe quick"]


def test_a_recipe_file_of_ones_own_runs_and_shows(command, finished, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "small_cnn"\n[train]\nepochs = 1\nbatch = 64\n')
    assert command("--stage", "all", "--recipe", file, "--workspace", finished).code == 0
    assert (finished / "submissions/mine/submission.csv").exists()
    run = command("--status", "--workspace", finished)
    assert [line for line in run.lines() if line.startswith("recipe")] == ["recipe mine", "recipe quick"]
    assert run.out.count("fresh") == 6 + 3  # quick's own settings differ from SHORT from train on


def test_an_interrupted_first_training_of_a_file_is_known(command, finished, tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nname = "small_cnn"\n[augment]\nangles = [7]\n')
    monkeypatch.setattr("pipeline.training.fit", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command("--stage", "all", "--recipe", file, "--workspace", finished).code == 130
    run = command("--status", "--workspace", finished)
    assert "recipe mine" in run.out and "an interrupted run can go on" in run.out
    assert "mine" not in command("--clean", "--workspace", finished).out.replace(str(tmp_path), "")
    assert command("--clean", "--workspace", finished).out == "nothing is unused\n"


def test_a_damaged_receipt_is_mended(status, stage, finished):
    (finished / "submissions/quick/submission.json").write_text("{")
    assert status()["predict"] == ("stale", "submission.json was deleted or is damaged")
    assert ran(stage("all")) == ["predict"]


@pytest.mark.parametrize("settings", [5, {"train": 5}, {"train": {"epochs": [[]]}}])
def test_status_survives_any_manifest(status, finished, settings):
    path = finished / "data/runs/quick/train/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": settings}))
    assert status()["train"][0] in ("missing", "stale")


def test_an_interrupted_training_is_given_up_with_a_word_and_kept_by_clean(command, stage, finished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.fit", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert stage("train", "--set", "train.epochs=5").code == 130
    assert command("--clean", "--workspace", finished).out == "nothing is unused\n"
    run = stage("train", "--set", "train.epochs=1")
    assert "an interrupted run is given up (train.epochs 5 -> 1)" in run.out


def test_the_log_has_a_line_an_epoch(stage, finished):
    stage("train", "--force")
    log = max((finished / "data/logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert log.read_text().count("train: epoch ") == 2


def test_status_of_a_recipe_that_is_none(command, finished):
    run = command("--status", "--recipe", "quik", "--workspace", finished)
    assert run.code == 2 and run.err.startswith("error: there is no recipe")


def test_clean_lists_and_removes_what_no_recipe_uses(command, stage, finished):
    stage("augment", "--set", "augment.angles=[5]")
    (finished / "data/augmented/.images.npy.1.tmp").write_bytes(b"half")
    place = ("--workspace", finished)
    run = command("--clean", *place)
    assert run.code == 0 and run.out.count("unused: ") == 2 and "--clean --yes" in run.out
    kept = content(finished / "data/runs")
    assert command("--clean", "--yes", *place).code == 0
    assert command("--clean", *place).out == "nothing is unused\n"
    assert content(finished / "data/runs") == kept
    assert ran(stage("all")) == []


def test_each_run_leaves_a_log(stage, finished):
    before = set((finished / "data/logs").iterdir())
    stage("evaluate")
    (log,) = set((finished / "data/logs").iterdir()) - before
    assert "evaluate: done" in log.read_text()


def test_the_manifest_is_the_same_for_the_same_run(stage, finished):
    place = finished / "data/runs/quick/train"
    before = (place / "manifest.json").read_bytes()
    stage("train", "--force")
    assert (place / "manifest.json").read_bytes() == before
    context = json.loads((place / "context.json").read_text())
    assert context["training_seconds"] > 0 and context["versions"]["torch"] and context["device"] == "cpu"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_and_the_next_run_goes_on(finished, command, number, code):
    """A real process, stopped in the middle of training; the result is that of a run never stopped."""
    words = [*SHORT, "--set", "train.epochs=12", "--workspace", str(finished), "--device", "cpu"]
    partial = finished / "data/runs/quick/train.partial"
    process = subprocess.Popen(
        [sys.executable, "run_pipeline.py", "--stage", "train", *words],
        cwd=Path(__file__).parent.parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # Not inherited: a shell ignores it in its background jobs, where the tests may run.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (partial / "history.csv").exists():
        time.sleep(0.02)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    began = time.monotonic()
    assert process.wait(10) == code
    assert time.monotonic() - began < 5
    if number != signal.SIGKILL:
        assert "goes on from there" in process.stderr.read()
    process.stderr.close()
    said = command("--status", *words).out  # what stood there before still stands
    assert "train     stale    train.epochs 2 -> 12; an interrupted run can go on" in said
    resumed = command("--stage", "train", *words)
    assert "going on after epoch" in resumed.out
    place = finished / "data/runs/quick/train"
    one = {name: (place / name).read_bytes() for name in ("weights.safetensors", "history.csv")}
    assert command("--stage", "train", *words).code == 0
    assert {name: (place / name).read_bytes() for name in one} == one
