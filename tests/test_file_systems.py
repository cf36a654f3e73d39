"""File systems without locks, folders that cannot be written, links to what does not exist, and `~` in file names."""

import errno
import fcntl
import os
import pwd
import shutil
import tempfile
from pathlib import Path

import pytest

from pipeline.cli import workflows
from pipeline.cli.arguments import parse_arguments
from pipeline.cli.main import _explain_read_only, main
from pipeline.errors import StageError
from pipeline.recipes import config
from pipeline.recipes.settings import Model
from pipeline.training import imagenet, pool
from pipeline.workflow import locks
from tests.conftest import TINY, content

# Locks


@pytest.fixture(params=["ENOLCK", "EOPNOTSUPP", "EBADF", "ENOSYS"])
def without_locks(request, monkeypatch):
    """flock fails, as on some network drives; returns the error's text."""
    number = getattr(errno, request.param)

    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    return os.strerror(number)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [(), ("--wait",)], ids=["", "wait"])
def test_a_workspace_without_locks_is_refused(without_locks, options, command, tmp_path):
    run = command("--stage", "download", "--data", "sample", "--workspace", tmp_path, *options)
    lock = tmp_path / "data/.lock"
    assert run.code == 2 and run.err == (
        f"error: {lock} cannot be locked on this file system ({without_locks}): use --workspace with a folder on a "
        "local disk\n"
    )


def test_the_lock_of_a_training_and_of_a_gpu(without_locks, tmp_path, monkeypatch):
    with pytest.raises(StageError, match=f"{tmp_path}/a.lock cannot be locked .*{without_locks}.*--workspace"):
        locks.acquire_lock(tmp_path / "a.lock", wait=True)
    with pytest.raises(StageError, match=f"{tmp_path}/0 cannot be locked .*: set TMPDIR"):
        pool._take_gpu.__wrapped__(str(tmp_path), (0,), 1)


def test_a_lock_that_is_held_is_not_called_unsupported(tmp_path):
    held = locks.acquire_lock(tmp_path / "a.lock")
    with pytest.raises(locks.filelock.Timeout):
        locks.acquire_lock(tmp_path / "a.lock")
    held.release()
    locks.acquire_lock(tmp_path / "a.lock").release()


def test_an_old_filelock_that_takes_every_error_for_a_held_lock(without_locks, tmp_path, monkeypatch):
    """As before version 3.24: it would wait forever."""

    def acquire(lock, **options):
        raise locks.filelock.Timeout(lock.lock_file)

    monkeypatch.setattr(locks.filelock.FileLock, "acquire", acquire)
    with pytest.raises(StageError, match="cannot be locked"):
        locks.acquire_lock(tmp_path / "a.lock", wait=True)


@pytest.mark.parametrize("to", ["file", "folder", "missing", ".lock", "a folder"])
def test_a_link_or_a_folder_in_place_of_a_lock_is_named_and_its_target_stays(to, command, tmp_path):
    (tmp_path / "outside/folder").mkdir(parents=True)
    (tmp_path / "outside/file").write_text("mine")
    before = content(tmp_path / "outside")
    for lock in (tmp_path / "data/.lock", tmp_path / "data/networks/net.lock", tmp_path / "gpu/0"):
        lock.parent.mkdir(parents=True, exist_ok=True)
        if to == "a folder":
            lock.mkdir()
        else:
            lock.symlink_to(lock.name if to == ".lock" else tmp_path / "outside" / to)
    expected = "must be a file that can be locked, not a link or a folder: move it elsewhere"
    for options in (("--stage", "download", "--data", "sample"), ("--clean", "--yes", "--wait")):
        run = command(*options, "--workspace", tmp_path)
        assert (run.code, run.err) == (2, f"error: {tmp_path}/data/.lock {expected}\n")
    with pytest.raises(StageError, match=f"{tmp_path}/data/networks/net.lock {expected}"):
        locks.acquire_lock(tmp_path / "data/networks/net.lock", wait=True)
    with pytest.raises(StageError, match=f"{tmp_path}/gpu/0 {expected}"):
        pool._take_gpu.__wrapped__(str(tmp_path / "gpu"), (0,), 1)
    assert content(tmp_path / "outside") == before and os.listdir(tmp_path / "outside/folder") == []


@pytest.mark.parametrize("to", ["file", "folder", "missing"])
def test_links_in_place_of_the_file_that_names_the_holder(to, tmp_path):
    (tmp_path / "outside/folder").mkdir(parents=True)
    (tmp_path / "outside/file").write_text("mine")
    (tmp_path / "data").mkdir()
    for name in (".lock-holder.json", f"..lock-holder.json.{os.getpid()}.tmp", "..lock-holder.json.7.tmp"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "outside" / to)
    (tmp_path / f"data/..lock-holder.json.{os.getpid() + 1}.tmp").mkdir()  # a folder of the user
    (tmp_path / "data/..lock-holder.json.8.tmp").write_text("{")  # of a process that was killed
    for _ in range(2):
        with locks.lock_workspace(tmp_path, "all"):
            assert f'"pid": {os.getpid()}' in (tmp_path / "data/.lock-holder.json").read_text()
    assert (tmp_path / "outside/file").read_text() == "mine" and not (tmp_path / "outside/missing").exists()
    assert os.listdir(tmp_path / "outside/folder") == [] and not (tmp_path / "data/..lock-holder.json.8.tmp").exists()


# Folders that cannot be written


def read_only(monkeypatch, folder, number):
    """Creating or replacing a file below a folder fails, also for root, as on a disk that is mounted read-only."""

    def failing(function, is_write=lambda *arguments, **options: True):
        def call(path, *arguments, **options):
            inside = isinstance(path, str | os.PathLike) and Path(os.fspath(path)).is_relative_to(folder)
            if inside and is_write(*arguments, **options):
                raise OSError(number, os.strerror(number), str(path))
            return function(path, *arguments, **options)

        return call

    def is_write(mode="r", *arguments, **options):
        return mode[0] in "wax"

    monkeypatch.setattr("builtins.open", failing(open, is_write))
    monkeypatch.setattr(os, "open", failing(os.open, lambda flags, *rest, **options: flags & (os.O_WRONLY | os.O_RDWR)))
    for name in ("mkdir", "rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(
    ("below", "stage"),
    [(".", "download"), ("data", "download"), ("data/prepared", "prepare"), ("submissions", "predict")],
)
def test_a_read_only_workspace_is_named(below, stage, number, command, tiny, monkeypatch):
    before = content(tiny)
    with monkeypatch.context() as patch:
        read_only(patch, tiny / below, number)
        run = command("--stage", stage, *TINY, "--workspace", tiny, "--device", "cpu")
    assert run.code == 2 and run.err.count("\n") == 1
    assert run.err.startswith(f"error: {tiny}/") and os.strerror(number) in run.err and "--workspace" in run.err
    kept = [path for path in before if "/data/logs/" not in path and "/data/.lock" not in path]
    after = content(tiny)
    assert [path for path in kept if after.get(path) != before[path]] == []
    assert command("--status", *TINY, "--workspace", tiny).out.count("fresh") == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_a_workspace_of_another_user(command, tmp_path):
    tmp_path.chmod(0o555)
    try:
        run = command("--stage", "download", "--data", "sample", "--workspace", tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert run.code == 2 and run.err.startswith(f"error: {tmp_path}/data: Permission denied: choose")


def test_other_files_that_cannot_be_read_are_not_called_a_read_only_workspace(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "/etc/shadow")
    assert _explain_read_only(error, tmp_path) is error
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "data/a"))
    assert _explain_read_only(error, tmp_path) is error


def test_a_machine_without_a_folder_for_temporary_files(command, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    run = command("--stage", "download", "--data", "sample", "--workspace", tmp_path)
    expected = (
        f"No usable temporary directory found in ['{tmp_path}/missing']: set TMPDIR to a folder that can be written"
    )
    assert (run.code, run.err) == (2, f"error: {expected}\n") and not (tmp_path / "data").exists()


def test_a_missing_folder_for_temporary_files_is_replaced(command, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert command("--stage", "download", "--data", "sample", "--workspace", tmp_path).code == 0


# Links


@pytest.mark.parametrize("link", ["data", "data/raw", "data/prepared", "data/runs", "data/runs/quick", "data/logs"])
def test_a_link_to_what_does_not_exist_is_named(link, command, tiny, tmp_path):
    target = tmp_path / "not/mounted"
    shutil.rmtree(tiny / link)
    (tiny / link).symlink_to(target)
    expected = f"{tiny / link} is a link to {target}, which does not exist: mount its disk, or change the link"
    run = command("--stage", "all", *TINY, "--workspace", tiny, "--device", "cpu")
    assert (run.code, run.err) == (2, f"error: {expected}\n")
    status = command("--status", *TINY, "--workspace", tiny)
    assert status.code == 0 and (link == "data/logs" or f"stale    {expected}" in status.out)
    assert (tiny / link).is_symlink() and not target.parent.exists()


def test_a_workspace_or_its_submissions_may_be_such_a_link(command, tiny, tmp_path):
    workspace = tmp_path / "workspace"
    workspace.symlink_to("elsewhere")
    run = command("--stage", "download", "--data", "sample", "--workspace", workspace)
    assert run.code == 2 and run.err.startswith(f"error: {workspace} is a link to elsewhere, which does not exist")
    shutil.rmtree(tiny / "submissions")
    (tiny / "submissions").symlink_to("submissions")  # a loop
    run = command("--stage", "predict", *TINY, "--workspace", tiny, "--device", "cpu")
    assert run.code == 2 and run.err.startswith(f"error: {tiny}/submissions is a link to submissions, which does not")


def test_a_foreign_link_is_ignored(command, tiny):
    for name in ("data/.#notes", "data/mine", "submissions/old"):
        (tiny / name).symlink_to("nowhere")
    assert command("--stage", "predict", *TINY, "--workspace", tiny, "--device", "cpu").code == 0
    assert all((tiny / name).is_symlink() for name in ("data/.#notes", "data/mine", "submissions/old"))


# ~


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "x").mkdir(parents=True)
    (tmp_path / "current").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "current")
    return home


def test_the_home_folder_in_options(home):
    options = parse_arguments(
        ["--stage", "recognize", "--data=~/x", "--workspace=~/y", "--images=~/x/1.png", "--recipe=~/mine.toml"]
    )
    assert (options.data, options.workspace, options.images) == (f"{home}/x", home / "y", [home / "x/1.png"])
    assert workflows.split(options.recipe) == [f"{home}/mine.toml"]
    assert workflows.split("quick,~/a.toml") == ["quick", f"{home}/a.toml"]
    (home / "a,b.toml").touch()
    assert workflows.split("~/a,b.toml") == [f"{home}/a,b.toml"]
    user = pwd.getpwuid(os.getuid())
    assert config.expand_home(f"~{user.pw_name}/x") == f"{user.pw_dir.rstrip('/')}/x"


def test_a_workspace_in_the_home_folder(home, command):
    assert command("--stage", "download", "--data=sample", "--workspace=~/results").code == 0
    assert (home / "results/data/raw/train.csv").exists() and os.listdir() == []


def test_a_recipe_and_weights_in_the_home_folder(home, command, tmp_path):
    (home / "mine.toml").write_text('about = "mine"\n')
    run = command("--status", "--recipe=~/mine.toml", "--workspace", tmp_path)
    assert run.code == 0 and run.out.startswith("recipe mine"), run.err
    (home / "w.pth").write_bytes(b"weights")
    model = Model(name="alexnet", pretrained="imagenet", weights_file="~/w.pth")
    assert imagenet.find_weights(model, tmp_path).path == home / "w.pth"


def test_a_name_that_exists_as_it_is_written_is_used(home):
    """A shell does not change the names that a pattern such as `*` matches."""
    Path("~").mkdir()
    Path("~/x").touch()
    Path("~draft.toml").touch()
    assert config.expand_home("~/x") == "~/x"
    assert parse_arguments(["--stage", "recognize", "--images", "~draft.toml"]).images == [Path("~draft.toml")]
    assert workflows.split("~draft.toml") == [str(Path("~draft.toml").absolute())]
    assert config.expand_home("~/y") == f"{home}/y"


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "~nobody-of-this-name"])
def test_an_unknown_home_folder_is_not_created(name, home, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--stage", "download", f"--workspace={name}"])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert f"{name}: unknown home folder" in message and os.listdir() == []
    model = Model(name="alexnet", pretrained="imagenet", weights_file=name)
    with pytest.raises(imagenet.MissingWeights, match="is not a file"):
        imagenet.find_weights(model, home)
