"""Every write, flush, rename and folder made to fail in turn: the old or the new stands, and one line says why."""

import errno
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import artifacts
from tests import toy_stages
from tests.conftest import write_tables
from tests.interference import Points, Runs, failing
from tests.test_kills import ALL, KINDS, Check, one_of_each, results

CAUSES = (errno.ENOSPC, errno.EIO, errno.EACCES)


def strays(folder):
    return [path.name for path in folder.rglob("*") if path.suffix == ".tmp"]


def count(folder):
    """The number of points of the three toy stages, from the first time on and once again with other settings."""
    with Points() as points:
        toy_stages.run_all(toy_stages.call(folder))
        first = points.count
        toy_stages.run_all(toy_stages.call(folder, seed=1, shift=1, force=True))
    return first, points.count


@pytest.fixture
def toys(tmp_path):
    """A workspace where the toy stages have run, and how many points they pass when they run again, all of them."""
    (tmp_path / "try").mkdir()
    (tmp_path / "try/in.txt").write_text("one")
    first, both = count(tmp_path / "try")
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "in.txt").write_text("one")
    toy_stages.run_all(toy_stages.call(folder))
    return folder, both - first


@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in (1, 2))])
def test_every_call_of_small_stages_fails_in_turn(toys, tmp_path, turn):
    """With one cause after the other; the slow turns bring each call the other two."""
    folder, total = toys
    old, new = toy_stages.expected(folder, 0, 0), toy_stages.expected(folder, 1, 1)
    assert total > 100
    failed = 0
    for at in range(total):
        workspace = shutil.copytree(folder, tmp_path / "workspace")
        call, cause = toy_stages.call(workspace, seed=1, shift=1, force=True), CAUSES[(at // 2 + turn) % 3]
        try:
            with Points(at, failing(cause)):
                toy_stages.run_all(call)
        except OSError as error:
            assert error.errno == cause and str(workspace) in str(error.filename)
            failed += 1
        for name, content in toy_stages.contents(workspace).items():
            assert content in (old[name], new[name]), f"{name} after a failure at point {at}"
        for output in toy_stages.OUTPUTS.values():
            place = (workspace / output).parent
            assert place.exists(), f"{place} is moved aside after a failure at point {at}"
            manifest, _ = artifacts.read_manifest(place)
            assert manifest and not artifacts.changed_outputs(place, manifest)
        assert not strays(workspace)
        again = toy_stages.call(workspace, seed=1, shift=1)
        toy_stages.run_all(again)
        assert toy_stages.contents(workspace) == new
        assert toy_stages.run_all(again) == []
        shutil.rmtree(workspace)
    assert failed > total / 4  # of the others, most are moments after a call


@pytest.fixture(scope="module")
def runs():
    made = Runs()
    yield made
    made.close()


@pytest.fixture(scope="module")
def base(runs, tables, tmp_path_factory):
    before, after = (tmp_path_factory.mktemp(name) / "workspace" for name in ("before", "after"))
    write_tables(before / "data/raw", tables)
    assert runs(*ALL, "--workspace", before).code == 0
    shutil.copytree(before, after)
    whole = runs(*ALL, *KINDS["one network"][1], "--workspace", after)
    return before, after, whole.points


def fails(check, at, cause):
    workspace, failed = check(fail=(at, cause))
    if failed.code:
        assert failed.code == 1, f"{check.points[at]}: {failed.err}"
        assert failed.err.startswith("error: ") and failed.err.count("\n") == 1
        assert str(workspace) in failed.err and os.strerror(cause) in failed.err, failed.err
    else:  # what was to be cleared away stays behind
        assert check.points[at].split()[1] in ("unlink", "rmdir", "mkdir"), check.points[at]
        stands = {path: content for path, content in results(workspace).items() if ".previous/" not in path}
        assert stands == check.new | {p: check.old[p] for p in check.old.keys() - check.new.keys()}
    assert not strays(workspace)
    check.goes_on(workspace)


SAMPLE = ("write .checkpoint.pt", "fsync .weights", "replace .manifest", "mkdir train.partial", "rename train")


@pytest.mark.parametrize("call", [*SAMPLE[:2], *(pytest.param(call, marks=pytest.mark.slow) for call in SAMPLE[2:])])
def test_a_call_of_the_real_run_fails(runs, base, tmp_path, command, call):
    at = next(number for number, point in enumerate(base[2]) if point.startswith(f"before {call}"))
    fails(Check(runs, base, "one network", tmp_path, command), at, CAUSES[SAMPLE.index(call) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_each_kind_of_call_of_the_real_run_fails(runs, base, tmp_path, command, part):
    check, causes = Check(runs, base, "one network", tmp_path, command), itertools.cycle(CAUSES)
    for at in [at for at in one_of_each(base[2]) if base[2][at].startswith("before")][part::4]:
        fails(check, at, next(causes))


class TestSmallDisk:
    """A real file system of 24 MB in a mount namespace, filled at some moment of a run."""

    @pytest.fixture(scope="class")
    @staticmethod
    def disk(tmp_path_factory):
        folder = tmp_path_factory.mktemp("disk")
        words = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=24M none "$0" && exec "$@"', folder]
        if not shutil.which("unshare") or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here: unshare -rm is refused")
        runs = Runs(words)
        assert runs("--list").code == 0  # now it is mounted
        yield runs, folder, Path(f"/proc/{runs.server.pid}/root{folder}")  # the last as seen from this process
        runs.close()

    @pytest.fixture(scope="class")
    @staticmethod
    def undisturbed(disk, tables):
        """The points of a whole run, and its results."""
        runs, folder, seen = disk
        write_tables(seen / "workspace/data/raw", tables)
        whole = runs(*ALL, "--workspace", folder / "workspace")
        assert whole.code == 0, whole.err
        return whole.points, results(seen / "workspace")

    @pytest.mark.parametrize(
        "moment",
        [
            "before write .checkpoint.pt",
            pytest.param("before open .manifest", marks=pytest.mark.slow),
            pytest.param("after mkdir train.partial", marks=pytest.mark.slow),
            pytest.param("before open .sub", marks=pytest.mark.slow),
        ],
    )
    def test_full_in_the_middle(self, disk, undisturbed, tables, moment):
        (runs, folder, seen), (points, good) = disk, undisturbed
        shutil.rmtree(seen / "workspace")
        write_tables(seen / "workspace/data/raw", tables)
        words = (*ALL, "--workspace", folder / "workspace")
        at = max(number for number, point in enumerate(points) if point.startswith(moment))
        full = runs(*words, fill=(at, str(folder / "filler")))
        assert full.code == 1 and "No space left on device" in full.err and full.err.count("\n") == 1
        assert str(folder / "workspace") in full.err
        assert not strays(seen)
        refused = runs(*words)  # still full: said before a stage starts, or by the first line of its log
        assert refused.code == 1 and refused.err.count("\n") == 1
        assert "No space left" in refused.err or "MB free" in refused.err
        (seen / "filler").unlink()
        assert runs(*words).code == 0
        assert results(seen / "workspace") == good


def test_a_stage_that_would_fill_the_disk_does_not_begin(command, finished, monkeypatch):
    usage = shutil.disk_usage(finished)._replace(free=6 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    more = ("--set", f"augment.angles={list(range(1, 41))}", "--workspace", finished)
    run = command("--stage", "augment", *ALL[2:], *more)
    assert run.code == 1 and run.err.count("\n") == 1
    assert "augment writes up to 17 MB" in run.err and "6 MB free: make room" in run.err
    assert not list((finished / "data/augmented").glob("*.partial"))
    assert command("--stage", "augment", *ALL[2:], "--workspace", finished).code == 0


@pytest.mark.parametrize(
    "settings",
    [
        ("--set", "split.folds=2"),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("--set", "train.optimizer=muon"), marks=pytest.mark.slow),
    ],
)
def test_what_a_stage_says_to_need_is_enough_and_not_absurd(command, finished, monkeypatch, settings):
    """Against the bytes that pass the one write function, the checkpoints that replace each other counted once."""
    from pipeline.stages import engine

    written, asked = {}, {}
    real_write, real_require = artifacts.write, engine._require_space

    def write(path, pieces, *, append=False):
        real_write(path, pieces, append=append)
        written.setdefault(stage[0], {})[path] = Path(path).stat().st_size

    def require(job, needed):
        stage[0] = job.key["stage"]
        asked[stage[0]] = needed + engine.MARGIN
        real_require(job, needed)

    stage = ["before"]
    monkeypatch.setattr(artifacts, "write", write)
    monkeypatch.setattr(engine, "_require_space", require)
    words = (*ALL, *settings, "--set", "train.average=0.5", "--force", "--workspace", finished)
    assert command(*words).code == 0
    for name, needed in asked.items():
        twice = sum(written[name].values()) + max(written[name].values())  # old and new at the moment of renaming
        assert twice <= needed, name
        assert needed < 8 * twice + 3 * engine.MARGIN, name
