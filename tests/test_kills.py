"""Runs that are killed at any point: published results survive, incomplete ones do not count, and a run that continues
ends with the same bytes as an undisturbed run."""

import functools
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.workflow import locks, publishing, store
from tests.conftest import TINY, write_tables

ALL = ("--stage", "all", *TINY, "--device", "cpu")
# For each kind: the settings of the published results, and those of the run that is disturbed.
KINDS = {
    "one network": ((), ("--set", "train.seed=1", "--set", "split.seed=1", "--set", "augment.angles=[5]")),
    "ensemble": (("--set", "split.folds=2"), ("--set", "split.folds=2", "--set", "train.seed=1")),
}
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
STOPPED = "stopped: finished work is kept; the same command continues from there\n"
DETERMINISTIC = ("submission.csv", "weights.safetensors", "history.csv", "manifest.json", "metrics.json", "images.npy")
IDLE_SECONDS = 7  # after which no worker of a killed run may be left; one that never got work ends after 5


@dataclass
class Undisturbed:
    """Two runs, one after the other, that were not disturbed."""

    before: Path  # the workspace after the first run
    after: Path  # a copy of it after the second run, with changed settings
    first_points: list[str]
    points: list[str]  # of the second run
    seconds: float  # of the second run


@pytest.fixture(scope="module")
def undisturbed(runs, tables, tmp_path_factory):
    """By kind, the undisturbed runs."""

    @functools.cache
    def get(kind):
        first, changed = KINDS[kind]
        before, after = (tmp_path_factory.mktemp(name) / "workspace" for name in ("before", "after"))
        write_tables(before / "data/raw", tables)
        outcomes = [runs(*ALL, *first, "--workspace", before)]
        shutil.copytree(before, after)
        outcomes.append(runs(*ALL, *changed, "--workspace", after))
        assert all(run.code == 0 for run in outcomes), outcomes
        return Undisturbed(before, after, *(run.points for run in outcomes), outcomes[1].seconds)

    return get


def results(workspace):
    """The bytes of what is published and deterministic, by path. The receipt and context.json contain times."""
    return {
        str(path.relative_to(workspace)): path.read_bytes()
        for name in DETERMINISTIC
        for path in workspace.rglob(name)
        if ".partial" not in str(path) and "raw" not in path.parts
    }


def strays(workspace):
    """Temporary files and folders."""
    return [path for path in workspace.rglob("*") if path.suffix in (".tmp", ".partial", ".previous")]


def training_processes():
    """Processes of joblib that still train or wait for work, of runs that these tests started."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"loky" in command and f"PIPELINE_TEST={os.getpid()}".encode() in environment:
                pids.append(int(entry.name))
    return pids


class Disturbance:
    """Disturbs a run, and checks what is left."""

    def __init__(self, runs, undisturbed, kind, folder, command):
        self.runs, self.command, self.workspace = runs, command, folder / "workspace"
        base = undisturbed(kind)
        self.before, self.points, self.seconds = base.before, base.points, base.seconds
        self.arguments = (*ALL, *KINDS[kind][1], "--workspace", self.workspace)
        self.old, self.new = results(base.before), results(base.after)

    def run(self, **interference):
        """Run in a fresh copy of the workspace with an interference; returns its Outcome."""
        shutil.rmtree(self.workspace, ignore_errors=True)
        shutil.copytree(self.before, self.workspace)
        run = self.runs(*self.arguments, **interference)
        self.check_workspace()
        return run

    def check_workspace(self):
        """`--status` works, each result is the old or the new one and complete, and the lock is free."""
        status = self.command("--status", *self.arguments[2:])
        assert status.code == 0, status.err
        for path in self.workspace.rglob(store.MANIFEST):
            folder = path.parent
            if folder.suffix == ".partial" or folder != publishing.published_dir(folder.with_suffix("")):
                continue  # not published yet; or replaced and about to be deleted
            manifest, reason = store.read_manifest(folder)
            assert manifest, f"{folder}: {reason}"
            assert not store.changed_outputs(folder, manifest), folder
        for path, content in results(self.workspace).items():
            path = path.replace(".previous", "")
            assert content in (self.old.get(path), self.new.get(path)), f"{path} is neither the old nor the new one"
        for path in self.old:  # replaced, but never lost; after an interrupted publish it is in the folder beside
            path = self.workspace / path
            assert path.exists() or (publishing.previous_dir(path.parent) / path.name).exists(), f"{path} is lost"
        with locks.lock_workspace(self.workspace, "test"):
            pass

    def continue_run(self):
        """The same command ends with the bytes of an undisturbed run, and leaves no temporary files."""
        run = self.runs(*self.arguments)
        assert run.code == 0, run.err
        replaced = self.old.keys() - self.new.keys()
        assert results(self.workspace) == self.new | {path: self.old[path] for path in replaced}
        assert not strays(self.workspace)
        return run

    def kill_at(self, point, number):
        run = self.run(kill=(point, number))
        assert run.code == SIGNALS[number], f"{self.points[point]}: {run.code} {run.err}"
        if number != signal.SIGKILL:
            assert run.seconds < 5 and run.err.endswith(STOPPED)
            assert "Traceback" not in run.err
        self.continue_run()


@pytest.fixture
def disturbance(runs, undisturbed, tmp_path, command):
    return lambda kind: Disturbance(runs, undisturbed, kind, tmp_path, command)


def generic(point):
    """The name of a point without process ids, times and digests."""
    return re.sub(r"\d{8}-\d{6}-all-\d+|[0-9a-f]{12}", "*", point)


def one_of_each(points):
    """The number of the last point of each name; names differ in the call, in before or after, and in the file."""
    names = [generic(point) for point in points]
    return [len(names) - 1 - names[::-1].index(name) for name in dict.fromkeys(names)]


def test_the_points_include_every_call_for_every_important_file(undisturbed):
    names = {generic(point) for point in undisturbed("one network").points}
    files = ("checkpoint.pt", "manifest.json", "weights.safetensors", "history.csv", "submission.csv", "images.npy")
    for file in (*files, "started.json", "networks.json", "metrics.json"):
        for call in ("open", "write", "fsync", "replace"):
            for side in ("before", "after"):
                assert f"{side} {call} .{file}.PID.tmp" in names
    assert {f"before rename {name}" for name in ("train", "train.partial", "layers-seed1-*.partial")} <= names
    assert {f"after unlink {name}" for name in ("checkpoint.pt", "started.json", "networks.json")} <= names


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("after rename train", signal.SIGKILL),  # the old result is moved aside, the new one is not published yet
        ("before write .checkpoint.pt.PID.tmp", signal.SIGTERM),
        ("after fsync .images.npy.PID.tmp", signal.SIGINT),
        ("before rename layers-seed1-*.partial", signal.SIGKILL),  # the network is complete, but not published yet
        pytest.param("before replace .manifest.json.PID.tmp", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_named_point(disturbance, name, number):
    disturbance = disturbance("one network")
    disturbance.kill_at([generic(point) for point in disturbance.points].index(name), number)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_named_point(disturbance, part):
    disturbance = disturbance("one network")
    for point in one_of_each(disturbance.points)[part::4]:
        disturbance.kill_at(point, list(SIGNALS)[(point // 2) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_killed_from_outside_at_random(disturbance, number):
    disturbance, random_numbers = disturbance("one network"), random.Random(int(number))
    for _ in range(8):
        run = disturbance.run(after=(random_numbers.uniform(0, disturbance.seconds), number))
        assert run.code in (SIGNALS[number], 0)
        assert run.seconds < 5 or number == signal.SIGKILL
        disturbance.continue_run()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_an_ensemble_killed_at_named_points_and_at_random(disturbance, number):
    disturbance, random_numbers = disturbance("ensemble"), random.Random(int(number))
    for point in random_numbers.sample(one_of_each(disturbance.points), 8):
        disturbance.kill_at(point, number)
    for _ in range(4):
        run = disturbance.run(after=(random_numbers.uniform(0.2, 1) * disturbance.seconds, number))
        assert run.code in (SIGNALS[number], 0), run.err
        assert run.seconds < 5 or not run.code
        end = time.monotonic() + IDLE_SECONDS
        while training_processes() and time.monotonic() < end:
            time.sleep(0.1)
        assert not training_processes()
        disturbance.continue_run()
