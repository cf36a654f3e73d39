"""Killed at any moment: what stood before stands, nothing half-made counts, and going on ends as if never stopped."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline import artifacts
from tests.conftest import SHORT, write_tables
from tests.interference import Runs

ALL = ("--stage", "all", *SHORT, "--device", "cpu")
# Of each kind: the settings of what stands, and those of the run that is interfered with.
KINDS = {
    "one network": ((), ("--set", "train.seed=1", "--set", "split.seed=1", "--set", "augment.angles=[5]")),
    "ensemble": (("--set", "split.folds=2"), ("--set", "split.folds=2", "--set", "train.seed=1")),
}
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
DETERMINISTIC = ("submission.csv", "weights.safetensors", "history.csv", "manifest.json", "metrics.json", "images.npy")
IDLE = 7  # seconds after which no worker of a killed run may be left; one that never had work ends after 5


@pytest.fixture(scope="module")
def runs():
    made = Runs()
    yield made
    made.close()


@pytest.fixture(scope="module")
def bases(runs, tables, tmp_path_factory):
    """By kind: a workspace that stands, one where the changed run was never stopped, and the points of that run."""
    made = {}

    def of(kind):
        if kind not in made:
            first, changed = KINDS[kind]
            before, after = (tmp_path_factory.mktemp(name) / "workspace" for name in ("before", "after"))
            write_tables(before / "data/raw", tables)
            assert runs(*ALL, *first, "--workspace", before).code == 0
            shutil.copytree(before, after)
            whole = runs(*ALL, *changed, "--workspace", after)
            assert whole.code == 0, whole.err
            made[kind] = before, after, whole.points
        return made[kind]

    return of


def results(workspace):
    """What is published and deterministic, by path: bytes. The receipt and the context hold times."""
    return {
        str(path.relative_to(workspace)): path.read_bytes()
        for name in DETERMINISTIC
        for path in workspace.rglob(name)
        if ".partial" not in str(path) and "raw" not in path.parts
    }


def workers():
    """Processes that still train, or wait to: joblib's, of runs that these tests started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                inside = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(b"loky" in word for word in words) and f"PIPELINE_TEST={os.getpid()}".encode() in inside:
                found.append(int(entry.name))
    return found


class Check:
    """Interferes with a run, and holds what is left against what must be."""

    def __init__(self, runs, base, kind, folder, command):
        self.runs, self.kind, self.command = runs, kind, command
        self.before, self.after, self.points = base
        self.words = (*ALL, *KINDS[kind][1], "--workspace")
        self.folder = folder
        self.old, self.new = results(self.before), results(self.after)

    def __call__(self, **interference):
        workspace = self.folder / "workspace"
        shutil.rmtree(workspace, ignore_errors=True)
        shutil.copytree(self.before, workspace)
        stopped = self.runs(*self.words, workspace, **interference)
        self.holds(workspace)
        return workspace, stopped

    def holds(self, workspace):
        """`--status` works, each result is the old or the new, none is half, and the lock is free."""
        status = self.command("--status", *self.words[2:], workspace)
        assert status.code == 0, status.err
        for manifest in workspace.rglob(artifacts.MANIFEST):
            folder = manifest.parent
            if folder.suffix == ".partial" or folder != artifacts.standing(folder.with_suffix("")):
                continue  # not yet in place; or replaced, and on its way out
            known, why = artifacts.read_manifest(folder)
            assert known, f"{folder}: {why}"
            assert not artifacts.changed_outputs(folder, known), folder
        for path, content in results(workspace).items():
            path = path.replace(".previous", "")
            assert content in (self.old.get(path), self.new.get(path)), f"{path} is neither the old nor the new"
        for path in self.old:  # replaced, but never lost; where a publishing was cut off it stands beside
            place = workspace / path
            assert place.exists() or (artifacts.beside(place.parent)[1] / place.name).exists(), f"{path} is lost"
        lock = artifacts.Lock(workspace / "data/.lock")
        lock.acquire({})
        lock.release()

    def goes_on(self, workspace):
        """The same command ends with the bytes of a run never stopped, and leaves nothing beside them."""
        again = self.runs(*self.words, workspace)
        assert again.code == 0, again.err
        assert results(workspace) == self.new | {path: self.old[path] for path in self.old.keys() - self.new.keys()}
        strays = [path for path in workspace.rglob("*") if path.suffix in (".tmp", ".partial", ".previous")]
        assert not strays
        return again


@pytest.fixture
def check(runs, bases, tmp_path, command):
    return lambda kind: Check(runs, bases(kind), kind, tmp_path, command)


def kill_at(check, point, number):
    workspace, stopped = check(kill=(point, number))
    assert stopped.code == SIGNALS[number], f"{check.points[point]}: {stopped.code} {stopped.err}"
    if number != signal.SIGKILL:
        assert stopped.seconds < 5 and "goes on from there" in stopped.err
        assert "Traceback" not in stopped.err
    check.goes_on(workspace)


def one_of_each(points):
    """The number of a point of each name; names differ in the call, in before or after, and in the file."""
    shown = [re.sub(r"\d{8}-\d{6}-all-\d+|[0-9a-f]{12}", "*", point) for point in points]
    return [len(shown) - 1 - shown[::-1].index(name) for name in dict.fromkeys(shown)]


def test_points_are_those_of_files_that_matter(bases):
    _, _, points = bases("one network")
    for name in ("checkpoint.pt", "manifest.json", "weights.safetensors", "submission.csv", "images.npy"):
        for call in ("open", "write", "fsync", "replace"):
            for side in ("before", "after"):
                assert f"{side} {call} .{name}.PID.tmp" in points
    for name in ("train", "train.partial"):
        assert f"before rename {name}" in points


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("after rename train", signal.SIGKILL),  # the old result is moved aside, the new one not yet in its place
        ("before write .checkpoint.pt.PID.tmp", signal.SIGTERM),
        ("after fsync .images.npy.PID.tmp", signal.SIGINT),
        ("before replace .manifest.json.PID.tmp", signal.SIGKILL),
    ],
)
def test_killed_at_a_named_point(check, name, number):
    check = check("one network")
    kill_at(check, check.points.index(name), number)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_named_point(check, part):
    check = check("one network")
    for at in one_of_each(check.points)[part::4]:
        kill_at(check, at, list(SIGNALS)[(at // 2) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_killed_from_outside_at_random(check, number):
    check, chance = check("one network"), random.Random(int(number))
    for _ in range(8):
        workspace, stopped = check(after=(chance.uniform(0.02, 2.5), number))
        assert stopped.code in (SIGNALS[number], 0)
        assert stopped.seconds < 5 or number == signal.SIGKILL
        check.goes_on(workspace)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_an_ensemble_killed_at_named_points_and_at_random(check, number):
    check, chance = check("ensemble"), random.Random(int(number))
    for at in chance.sample(one_of_each(check.points), 8):
        kill_at(check, at, number)
    for _ in range(4):
        workspace, stopped = check(after=(chance.uniform(1, 5), number))
        assert stopped.code in (SIGNALS[number], 0), stopped.err
        assert stopped.seconds < 5 or not stopped.code
        gone = time.monotonic() + IDLE
        while workers() and time.monotonic() < gone:
            time.sleep(0.1)
        assert not workers()
        check.goes_on(workspace)
