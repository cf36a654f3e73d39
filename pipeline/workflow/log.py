"""The messages of a run: on the screen, and in a file of its own below data/logs/."""

import contextlib
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StageError, printable, show
from pipeline.workflow import locks, store


@dataclass
class RunLog:
    """Where a run writes its messages; by default only to the screen."""

    path: Path | None = None

    def say(self, message: str) -> None:
        """Write a message of one line to the screen and to the file."""
        show(message)
        self.write(message)

    def write(self, message: str) -> None:
        """Write a message of one line to the file only."""
        if self.path:
            store.append_line(self.path, f"{time.strftime('%H:%M:%S')} {printable(message)}")


@contextlib.contextmanager
def start_run(workspace: Path, stage: str, wait: bool) -> Iterator[RunLog]:
    """Hold the workspace's lock, and yield a new log, which also gets the error that ends the run."""
    try:
        tempfile.gettempdir()  # PyTorch, joblib and downloads need one
    except FileNotFoundError as error:
        raise StageError(f"{error.strerror}: set TMPDIR to a folder that can be written") from None
    with locks.lock_workspace(workspace, stage, wait):
        folder = store.resolve(workspace / "data/logs")
        folder.mkdir(parents=True, exist_ok=True)
        log = RunLog(folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{stage}-{os.getpid()}.log")
        try:
            yield log
        except BaseException as error:
            with contextlib.suppress(OSError):  # on a full disk, the first error is the one to report
                lines = traceback.format_exc().splitlines()
                for line in lines if isinstance(error, Exception) else [f"stopped by {error!r}"]:
                    log.write(line)
            raise
