"""Where an ensemble's networks train: killed and gone on with, on a real Dask cluster, on a disk that is not shared."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest

from pipeline import artifacts, recipe
from pipeline.stages import members
from tests.conftest import SHORT, digits_28, write_tables

ROOT = Path(__file__).parent.parent
# Four networks long enough to be found in the middle.
FOUR = ("--recipe", "quick", "--set", "train.epochs=24", "--set", "train.batch=32", "--set", "predict.shifts=[[0, 0]]")
FOUR += ("--set", "split.folds=2", "--set", "ensemble.seeds=2")
RESULTS = ("weights.safetensors", "history.csv")


def start(*words, env=None):
    """A Python process that leads a group of its own."""
    words = [sys.executable, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=env, start_new_session=True, **pipes)


def pipeline(workspace, *more):
    words = ("--stage", "train", *FOUR, "--workspace", workspace, "--device", "cpu", "--debug", *more)
    return start("run_pipeline.py", *words, env=os.environ | {"LOKY_MAX_CPU_COUNT": "2"})


def prepared(workspace, tables, command):
    write_tables(workspace / "data" / "raw", tables)
    for stage in ("download", "prepare", "augment"):
        assert command("--stage", stage, *FOUR, "--workspace", workspace).code == 0
    return workspace


def until(what, process, seconds=60):
    """Wait until `what()` is true while the process runs."""
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, f"it ended before: {process.stdout.read()}"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def finished(workspace):
    """Each published member, and when its manifest was written."""
    found = workspace.glob("data/members/*/manifest.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in found if path.parent.suffix != ".partial"}


def under_way(workspace):
    """The members in the first part of their training, with two finished epochs, the first of which is saved."""
    found = []
    for path in workspace.glob("data/members/*.partial/log.txt"):
        with contextlib.suppress(FileNotFoundError):  # it was published meanwhile
            text = path.read_text()
            if "epoch 2," in text and "epoch 14," not in text:
                found.append(path.parent.name.removesuffix(".partial"))
    return found


def results(workspace):
    return [(workspace / "data/runs/quick/train" / name).read_bytes() for name in RESULTS]


def log(workspace, member):
    return (workspace / "data/members" / member / "log.txt").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tables):
    """What these settings give where nothing happens."""
    import run_pipeline

    workspace = tmp_path_factory.mktemp("undisturbed")
    write_tables(workspace / "data" / "raw", tables)
    words = ("--stage", "all", *FOUR, "--workspace", str(workspace), "--device", "cpu")
    assert run_pipeline.main(list(words)) == 0
    return results(workspace)


def test_killed_in_the_middle_it_goes_on_with_what_is_missing(tmp_path, tables, command, undisturbed):
    workspace = prepared(tmp_path, tables, command)
    process = pipeline(workspace)
    until(lambda: finished(workspace) and under_way(workspace), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished(workspace)
    deadline = time.monotonic() + 30  # an idle one ends after members.IDLE
    while alive := _group(process.pid):
        assert time.monotonic() < deadline, f"workers live on: {alive}"
        time.sleep(0.1)
    again = pipeline(workspace)
    said, _ = again.communicate(timeout=100)
    assert again.returncode == 0, said
    assert f"{len(before)} of 4 members are there" in said
    after = finished(workspace)
    assert before.items() <= after.items() and len(after) == 4
    assert any("going on after epoch" in log(workspace, member) for member in after)
    assert results(workspace) == undisturbed


def _group(leader):
    """The processes of a group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(group) == leader and state != "Z":
            found.append(path.parent.name)
    return found


@pytest.fixture
def cluster(tmp_path):
    """The address of a real Dask scheduler on 127.0.0.1, and its two worker processes."""
    pytest.importorskip("distributed")
    place = tmp_path / "scheduler.json"
    quiet = ("--no-dashboard", "--scheduler-file", place)
    processes = [start("-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", *quiet)]
    try:
        until(place.exists, processes[0])
        address = artifacts.read_json(place)["address"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        processes += [
            start("-m", "dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", env=environment)
            for _ in range(2)
        ]
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_on_a_dask_cluster_one_of_whose_workers_is_killed(tmp_path, tables, command, undisturbed, cluster):
    address, workers = cluster
    workspace = prepared(tmp_path / "work", tables, command)
    process = pipeline(workspace, "--engine", f"dask={address}")
    until(lambda: finished(workspace) and len(under_way(workspace)) == 2, process)
    before, halves = finished(workspace), under_way(workspace)
    workers[0].kill()
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert before.items() <= finished(workspace).items() and len(finished(workspace)) == 4
    for member in finished(workspace):
        assert log(workspace, member).count("epoch 1,") == 1  # none was begun twice
    assert sum("going on after epoch" in log(workspace, member) for member in halves) == 1
    assert results(workspace) == undisturbed


def test_a_worker_without_the_parents_disk_gives_the_same(tmp_path):
    """Through a process of its own, which finds nothing at the folder it is told."""
    images, labels = digits_28(100)
    made = recipe.load("quick", ["train.epochs=2", "train.batch=50", "split.folds=2"])
    (tmp_path / "here").mkdir()
    key = {"stage": "member"}
    artifacts.write_json(tmp_path / "here" / artifacts.STARTED, key)
    task = members.Task(
        made.model, made.train, made.affine, 1, "cpu", 1, str(tmp_path / "here"), str(tmp_path), key, os.getpid()
    )  # fmt: skip
    elsewhere = dataclasses.replace(task, folder=str(tmp_path / "not" / "here"))
    fold = (np.arange(100) % 2).astype(np.uint8)
    with joblib.parallel_config("loky"):
        tasks = [joblib.delayed(members._train)(one, images, labels, fold) for one in (task, elsewhere)]
        one, two = joblib.Parallel(2)(tasks)
    for name in members.OUTPUTS:
        assert one[1][name] == two[1][name]
    assert (tmp_path / "here" / "checkpoint.pt").exists() and not (tmp_path / "not").exists()


def test_a_checkpoint_of_other_settings_or_inputs_is_not_gone_on_from(tmp_path):
    """A worker that was given up may leave one at the last moment."""
    images, labels = digits_28(100)
    made = recipe.load("quick", ["train.epochs=2", "train.batch=50"])
    for inputs in ("these", "others", "others"):
        key = {"stage": "member", "inputs": inputs}
        artifacts.write_json(tmp_path / artifacts.STARTED, key)
        task = members.Task(
            made.model, made.train, made.affine, None, "cpu", 1, str(tmp_path), str(tmp_path), key, os.getpid()
        )
        members._train(task, images, labels, None)
    said = (tmp_path / "log.txt").read_text()
    assert said.count("epoch 1,") == 2 and said.count("going on after epoch") == 1


def test_a_cluster_of_one_thread_is_refused(tmp_path, tables, command):
    distributed = pytest.importorskip("distributed")
    write_tables(tmp_path / "data" / "raw", tables)
    kind = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tcp", "dashboard_address": None}
    with distributed.LocalCluster(**kind) as cluster:
        words = ("--set", "ensemble.seeds=2", "--workspace", tmp_path, "--engine", f"dask={cluster.scheduler_address}")
        run = command("--stage", "all", *SHORT, *words)
    assert run.code == 2 and "one worker thread" in run.err


@pytest.mark.parametrize(
    "engine, words",
    [
        ("dask=tcp://127.0.0.1:9", "no Dask scheduler answers there"),
        ("slurm", "expected local or dask=tcp://HOST:PORT"),
    ],
)
def test_an_engine_that_is_not_there(tmp_path, tables, command, monkeypatch, engine, words):
    if engine.startswith("dask"):
        pytest.importorskip("distributed")
    write_tables(tmp_path / "data" / "raw", tables)
    began = time.monotonic()
    monkeypatch.setattr(members, "PATIENCE", 2)
    run = command("--stage", "all", *SHORT, "--set", "ensemble.seeds=2", "--workspace", tmp_path, "--engine", engine)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1
    assert time.monotonic() - began < 15


def test_dask_that_is_not_installed_is_named(tmp_path, tables, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    write_tables(tmp_path / "data" / "raw", tables)
    words = ("--set", "ensemble.seeds=2", "--workspace", tmp_path, "--engine", "dask=tcp://127.0.0.1:9")
    run = command("--stage", "all", *SHORT, *words)
    assert run.code == 2 and "requirements/dask.txt" in run.err


def test_one_network_needs_no_engine(tmp_path, command):
    run = command("--stage", "all", *SHORT, "--workspace", tmp_path, "--engine", "dask=tcp://127.0.0.1:9")
    assert run.code == 2 and "quick trains one network" in run.err and not list(tmp_path.iterdir())
