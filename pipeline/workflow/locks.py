"""Locks between processes: of a workspace, of a training and of a GPU."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock

from pipeline.errors import PipelineError, StageError, show
from pipeline.workflow import schemas, store

LOCK_HOLDER = "data/.lock-holder.json"  # below the workspace


class LockHeld(PipelineError):
    """Another process holds the workspace's lock."""


def acquire_lock(
    path: str | Path, wait: bool = False, advice: str = "use --workspace with a folder on a local disk"
) -> filelock.BaseFileLock:
    """Hold the lock of a file, which the operating system releases when the process dies.

    Raises filelock.Timeout if another process holds it, unless `wait` is set, and StageError if the path is not a file,
    or, with `advice`, if the file system does not support locks.
    """
    if os.path.lexists(path) and not store.is_file(path):
        raise StageError(f"{path} must be a file that can be locked, not a link or a folder: move it elsewhere")
    lock = filelock.FileLock(path)
    try:
        with warnings.catch_warnings(action="error", category=UserWarning):  # of a substitute that outlives its process
            lock.acquire(timeout=0)
    except (OSError, NotImplementedError, UserWarning) as error:
        import fcntl  # missing on Windows

        # Older versions of filelock cannot tell an unsupported lock from one that another process holds.
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                pass  # held by another process
            except OSError as cause:
                raise StageError(f"{path} cannot be locked on this file system ({cause.strerror}): {advice}") from None
        if not isinstance(error, filelock.Timeout) or not wait:
            raise
        lock.acquire(poll_interval=0.2)
    return lock


@contextlib.contextmanager
def lock_workspace(workspace: Path, stage: str, wait: bool = False) -> Iterator[None]:
    """Hold the workspace's lock, which the operating system releases when the process dies.

    Raises LockHeld, which says what stage the other process runs, if it is held, unless `wait` is set.
    """
    path, holder_file = store.resolve(workspace / "data") / ".lock", workspace / LOCK_HOLDER
    if workspace.exists() and not workspace.is_dir():
        raise StageError(f"--workspace {workspace}: not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire_lock(path)
    except filelock.Timeout:
        current = store.read_json(holder_file, schemas.LockHolder) or {}
        pid, other_stage, since = (current.get(name, "(unknown)") for name in ("pid", "stage", "since"))
        message = f"{workspace} is in use by process {pid}, stage {other_stage}, since {since}"
        if not wait:
            raise LockHeld(f"{message}; wait until it has finished, or use --wait") from None
        show(f"{message}; waiting")
        lock = acquire_lock(path, wait=True)
    try:
        for name in os.listdir(path.parent):
            if store.final_name(name) == holder_file.name != name and store.is_file(path.parent / name):
                (path.parent / name).unlink()  # of a process that was killed
        record_lock_holder(workspace, stage)
        yield
    finally:
        lock.release()


def record_lock_holder(workspace: Path, stage: str) -> None:
    """Record, for other processes, that this process holds the workspace's lock and runs a stage."""
    holder = {"pid": os.getpid(), "stage": stage, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    store.write_json(workspace / LOCK_HOLDER, holder)
