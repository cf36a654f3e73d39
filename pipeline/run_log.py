"""The messages of a run: on the screen, and in a file of its own below data/logs/."""

import contextlib
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import store


def printable(text: str) -> str:
    """The text with bytes of file names that are not UTF-8 escaped, as in "\\udce9"."""
    return text.encode(errors="backslashreplace").decode()


@dataclass
class RunLog:
    """Where a run writes its messages; by default only to the screen."""

    path: Path | None = None

    def say(self, message: str) -> None:
        """Write a message to the screen and to the file."""
        print(printable(message), flush=True)
        self.write(message)

    def write(self, message: str) -> None:
        """Write a message to the file only."""
        if self.path:
            store.append_line(self.path, f"{time.strftime('%H:%M:%S')} {message}")


@contextlib.contextmanager
def start_run(workspace: Path, stage: str, wait: bool) -> Iterator[RunLog]:
    """Hold the workspace's lock, and yield a new log, which also gets the error that ends the run."""
    with store.lock_workspace(workspace, stage, wait):
        folder = workspace / "data/logs"
        folder.mkdir(parents=True, exist_ok=True)
        log = RunLog(folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{stage}-{os.getpid()}.log")
        try:
            yield log
        except BaseException as error:
            with contextlib.suppress(OSError):  # on a full disk, the first error is the one to report
                log.write(traceback.format_exc() if isinstance(error, Exception) else f"stopped by {error!r}")
            raise
