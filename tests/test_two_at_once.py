"""Two runs at the same time: a workspace has one run at a time, and two workspaces do not affect each other."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import SHORT, TINY, write_tables

ALL = ("--stage", "all", *TINY, "--device", "cpu")
RESULTS = ("data/runs/quick/train/weights.safetensors", "submissions/quick/submission.csv")


@pytest.fixture
def start(runs, tables, tmp_path):
    """Start a run in a new workspace, which pauses in the middle of its training; returns the process and workspace."""
    pids = []

    def start(name):
        write_tables(tmp_path / name / "data/raw", tables)
        pause = ("before write .checkpoint.pt.PID.tmp", signal.SIGSTOP)
        pids.append(runs.start(*ALL, "--workspace", tmp_path / name, kill=pause))
        wait_until(lambda: state(pids[-1]) == "T")
        return pids[-1], tmp_path / name

    yield start
    for pid in pids:
        if state(pid):
            os.kill(pid, signal.SIGKILL)


def state(pid):
    """The state of a process: T if it is stopped, Z if it has ended, "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_second_run_is_refused_and_names_the_first_and_a_third_waits(start, runs, command):
    first, workspace = start("one")
    third = runs.start(*ALL, "--workspace", workspace, "--wait")
    for arguments in (ALL, ("--stage", "predict", *ALL[2:]), ("--clean", "--yes")):
        second = command(*arguments, "--workspace", workspace)
        assert second.code == 1 and second.err.count("\n") == 1
        holder = rf"process {first}, stage train, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
        message = f"error: {workspace} is in use by {holder}; wait until it has finished, or use --wait\n"
        assert re.fullmatch(message, second.err)
    assert command("--status", *TINY, "--workspace", workspace).code == 0  # needs no lock
    assert command("--clean", "--workspace", workspace).code == 0  # as long as nothing is deleted
    wait_until(lambda: "; waiting" in Path(f"/proc/{third}/fd/1").read_text())
    os.kill(first, signal.SIGCONT)
    for pid in (first, third):
        run = runs.finish(pid)
        assert run.code == 0, run.err
    assert f"is in use by process {first}, stage train" in run.out and run.out.count("; waiting") == 1
    assert "train: fresh" in run.out and "predict: fresh" in run.out


@pytest.mark.slow
def test_two_workspaces_at_the_same_time_have_the_same_results(start, runs):
    first, second = start("one"), start("two")  # both are in the middle of their trainings now
    for pid, _ in (first, second):
        os.kill(pid, signal.SIGCONT)
    for pid, _ in (first, second):
        run = runs.finish(pid)
        assert run.code == 0, run.err
    assert len({b"".join((workspace / name).read_bytes() for name in RESULTS) for _, workspace in (first, second)}) == 1


@pytest.mark.slow
def test_networks_that_are_trained_in_parallel_never_write_to_the_same_file(runs, tables, tmp_path):
    """Every file below data/networks that a worker has open belongs to the network that it trains."""
    write_tables(tmp_path / "data/raw", tables)
    options = ("--set", "split.folds=2", "--set", "train.epochs=30", "--device", "cpu", "--workspace", tmp_path)
    pid = runs.start("--stage", "all", *SHORT, *options)
    networks, opened = tmp_path / "data/networks", {}  # the open files of each process, by its id
    while state(pid) != "Z":
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                files = [os.readlink(file) for file in (entry / "fd").iterdir()]
            except OSError:
                continue
            opened.setdefault(int(entry.name), set()).update(Path(file) for file in files if str(networks) in file)
        time.sleep(0.01)
    run = runs.finish(pid)
    assert run.code == 0, run.err
    trained = {
        process: {file.relative_to(networks).parts[0].split(".")[0] for file in files}
        for process, files in opened.items()
        if process != pid and any(file.suffix == ".lock" for file in files)
    }
    assert trained and all(len(names) == 1 for names in trained.values()), trained
    assert len(set().union(*trained.values())) == 2
