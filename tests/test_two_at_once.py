"""Two runs by mistake, or on purpose: one workspace has one run at a time, and two workspaces have two."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SHORT, write_tables

ROOT = Path(__file__).parent.parent
LONG = (*SHORT, "--set", "train.epochs=16", "--device", "cpu")


def start(workspace, *more):
    words = [sys.executable, "run_pipeline.py", "--stage", "all", *LONG, "--workspace", workspace, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in words], cwd=ROOT, **pipes)


def until_training(process, workspace):
    end = time.monotonic() + 60
    while not (workspace / "data/runs/quick/train.partial/started.json").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def first(tmp_path, tables):
    workspace = tmp_path / "one"
    write_tables(workspace / "data/raw", tables)
    process = start(workspace)
    until_training(process, workspace)
    yield process, workspace
    process.kill()
    process.communicate()


def test_the_second_is_told_who_is_there_and_a_third_waits(first, command):
    process, workspace = first
    waiting = start(workspace, "--wait")
    for words in (("--stage", "all"), ("--stage", "predict"), ("--clean", "--yes")):
        second = command(*words, *(LONG if words[0] == "--stage" else ()), "--workspace", workspace)
        assert second.code == 1 and second.err.count("\n") == 1
        holder = rf"process {process.pid}, stage train, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.search(f"error: {workspace} is in use by {holder}; wait for it, or give --wait", second.err)
    assert command("--status", *LONG, "--workspace", workspace).code == 0  # looking is free
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    out, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, err
    assert f"is in use by process {process.pid}, stage" in out and out.count("; waiting") == 1
    assert "train: fresh" in out and "predict: fresh" in out


def test_two_workspaces_run_side_by_side_and_give_the_same(first, tmp_path, tables):
    process, workspace = first
    other = tmp_path / "two"
    write_tables(other / "data/raw", tables)
    second = start(other)
    until_training(second, other)
    assert process.poll() is None  # both train at once
    for each in (process, second):
        _, err = each.communicate(timeout=120)
        assert each.returncode == 0, err
    for name in ("data/runs/quick/train/weights.safetensors", "submissions/quick/submission.csv"):
        assert (workspace / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.slow
def test_members_side_by_side_never_write_to_one_file(tmp_path, tables):
    """Every file below data/members that a process has open for writing is of the member that it trains."""
    workspace = tmp_path / "members"
    write_tables(workspace / "data/raw", tables)
    process = start(workspace, "--set", "split.folds=2", "--set", "train.epochs=30")
    held = {}  # the open files of each process, by its number
    while process.poll() is None:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                files = [os.readlink(file) for file in (entry / "fd").iterdir()]
            except OSError:
                continue
            inside = {Path(file) for file in files if str(workspace / "data/members") in file}
            held.setdefault(entry.name, set()).update(inside)
        time.sleep(0.01)
    _, err = process.communicate()
    assert process.returncode == 0, err
    trained = {
        number: {file.relative_to(workspace / "data/members").parts[0].split(".")[0] for file in files}
        for number, files in held.items()
        if any(file.suffix == ".lock" for file in files)
    }
    assert trained and all(len(members) == 1 for number, members in trained.items() if number != str(process.pid)), (
        trained
    )
    assert len(set().union(*trained.values())) == 2
