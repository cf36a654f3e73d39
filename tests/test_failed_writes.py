"""Each write, flush, rename and new folder fails in turn: the old or the new result is complete, one line says why."""

import errno
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.workflow import store
from tests import toy_stages
from tests.conftest import write_tables
from tests.interference import Points, Runs, failing
from tests.test_kills import ALL, Disturbance, one_of_each, results, undisturbed

__all__ = ["undisturbed"]  # a fixture

CAUSES = (errno.ENOSPC, errno.EIO, errno.EACCES)


def temporary_files(folder):
    return [path for path in folder.rglob("*") if path.suffix == ".tmp"]


# Toy stages: every call


@pytest.fixture
def toys(tmp_path):
    """A workspace in which the toy stages have run, and the number of points when all of them run again."""
    workspaces = tmp_path / "counted", tmp_path / "toys"
    for workspace in workspaces:
        workspace.mkdir()
        (workspace / "in.txt").write_text("one")
        toy_stages.run_all(toy_stages.make_workflow(workspace))
    with Points() as points:
        toy_stages.run_all(toy_stages.make_workflow(workspaces[0], seed=1, shift=1, force=True))
    return workspaces[1], points.count


@pytest.mark.parametrize(
    ("step", "turn"), [(3, 0), *(pytest.param(1, turn, marks=pytest.mark.slow) for turn in range(3))]
)
def test_each_call_of_small_stages_fails_in_turn(toys, tmp_path, step, turn):
    """Every third call with one of the causes; in the slow turns, every call with each of the three."""
    folder, n_points = toys
    old, new = toy_stages.expected(folder, 0, 0), toy_stages.expected(folder, 1, 1)
    assert n_points > 100
    n_failed = 0
    for number, at in enumerate(range(0, n_points, step)):
        workspace = shutil.copytree(folder, tmp_path / "workspace")
        workflow = toy_stages.make_workflow(workspace, seed=1, shift=1, force=True)
        cause = CAUSES[(number // 2 + turn) % 3]
        try:
            with Points(at, failing(cause)):
                toy_stages.run_all(workflow)
        except OSError as error:
            assert error.errno == cause and str(workspace) in str(error.filename)
            n_failed += 1
        for name, content in toy_stages.contents(workspace).items():
            assert content in (old[name], new[name]), f"{name} after a failure at point {at}"
        for output in toy_stages.OUTPUTS.values():
            result = (workspace / output).parent
            assert result.exists(), f"{result} is moved aside after a failure at point {at}"
            manifest, _ = store.read_manifest(result)
            assert manifest and not store.changed_outputs(result, manifest)
        assert not temporary_files(workspace)
        repeated = toy_stages.make_workflow(workspace, seed=1, shift=1)
        toy_stages.run_all(repeated)
        assert toy_stages.contents(workspace) == new
        assert toy_stages.run_all(repeated) == []
        shutil.rmtree(workspace)
    assert n_failed > n_points / step / 4  # most of the others are points after a call


# The pipeline: calls by kind


def fail_at(disturbance, at, cause):
    run, workspace = disturbance.run(fail=(at, cause)), disturbance.workspace
    point = disturbance.points[at] if isinstance(at, int) else at
    if run.code:
        assert run.code == (2 if cause == errno.EACCES else 1), f"{point}: {run.err}"
        assert run.err.startswith("error: ") and run.err.count("\n") == 1
        assert str(workspace) in run.err and os.strerror(cause) in run.err, run.err
    else:  # something that was to be deleted is left
        assert point.split()[1] in ("unlink", "rmdir", "mkdir"), point
        published = {path: content for path, content in results(workspace).items() if ".previous/" not in path}
        replaced = disturbance.old.keys() - disturbance.new.keys()
        assert published == disturbance.new | {path: disturbance.old[path] for path in replaced}
    assert not temporary_files(workspace)
    disturbance.continue_run()


CALLS = (
    "write .checkpoint.pt.PID.tmp",
    "fsync .weights.safetensors.PID.tmp",
    "replace .manifest.json.PID.tmp",
    "mkdir train.partial",
    "rename train",
)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_a_call_of_the_pipeline_fails(runs, undisturbed, tmp_path, command, call):
    disturbance = Disturbance(runs, undisturbed, "one network", tmp_path, command)
    fail_at(disturbance, f"before {call}", CAUSES[CALLS.index(call) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_each_kind_of_call_of_the_pipeline_fails(runs, undisturbed, tmp_path, command, part):
    disturbance = Disturbance(runs, undisturbed, "one network", tmp_path, command)
    points = [at for at in one_of_each(disturbance.points) if disturbance.points[at].startswith("before")]
    for at, cause in zip(points[part::4], itertools.cycle(CAUSES), strict=False):
        fail_at(disturbance, at, cause)


# A full disk


class TestFullDisk:
    """A file system of 24 MB in a mount namespace, which is filled at some point of a run."""

    @pytest.fixture(scope="class")
    @staticmethod
    def disk(tmp_path_factory):
        """The server that runs in the namespace; the disk's folder there; and the same folder for this process."""
        folder = tmp_path_factory.mktemp("disk")
        prefix = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=24M none "$0" && exec "$@"', folder]
        test = [*prefix, "true"]
        if not shutil.which("unshare") or subprocess.run(test, capture_output=True, check=False).returncode:
            pytest.skip("unshare -rm is refused here: no file system can be mounted")
        runs = Runs(prefix)
        assert runs("--list").code == 0  # the disk is mounted now
        yield runs, folder, Path(f"/proc/{runs.server.pid}/root{folder}")
        runs.close()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "point",
        ["before write .checkpoint.pt", "before open .manifest", "after mkdir train.partial", "before open .sub"],
    )
    def test_disk_full(self, disk, undisturbed, tables, point):
        (runs, folder, here), base = disk, undisturbed("one network")
        shutil.rmtree(here / "workspace", ignore_errors=True)
        write_tables(here / "workspace/data/raw", tables)
        arguments = (*ALL, "--workspace", folder / "workspace")
        at = max(number for number, name in enumerate(base.first_points) if name.startswith(point))
        run = runs(*arguments, fill=(at, str(folder / "filler")))
        assert run.code == 1 and "No space left on device" in run.err and run.err.count("\n") == 1
        assert str(folder / "workspace") in run.err
        assert not temporary_files(here)
        refused = runs(*arguments)  # still full: refused before a stage starts, or when its log is written
        assert refused.code == 1 and refused.err.count("\n") == 1
        assert "No space left" in refused.err or "MB free" in refused.err
        (here / "filler").unlink()
        assert runs(*arguments).code == 0
        assert results(here / "workspace") == results(base.before)


@pytest.fixture
def workspace(tables, tmp_path):
    """A workspace with competition files."""
    write_tables(tmp_path / "workspace/data/raw", tables)
    return tmp_path / "workspace"
