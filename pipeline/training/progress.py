"""What is shown while several networks are trained: how many are done, the epochs of the others, the time left."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from pipeline.training.task import HISTORY
from pipeline.workflow.context import StageContext

TERMINAL_INTERVAL, LINE_INTERVAL = 0.5, 60.0  # seconds between two updates: of the bar, and of lines without a terminal

FIRST_ESTIMATE = 0.02  # of the epochs, after which the time left is shown: the first ones include the start of workers


class Progress:
    """The progress of trainings in folders, read from what they write there; on other machines, nothing is known."""

    def __init__(self, folders: Mapping[Path, int]) -> None:
        """folders: the number of epochs of each training, by its staging folder."""
        self.folders, self.finished, self.start = dict(folders), set[Path](), time.monotonic()
        self.at_start = sum(self.epochs().values())  # of trainings that continue

    def epochs(self) -> dict[Path, int]:
        """The epochs of the trainings that have begun and are not finished."""
        epochs = {}
        for folder in self.folders.keys() - self.finished.copy():  # which another thread adds to
            with contextlib.suppress(OSError):
                epochs[folder] = max(0, (folder / HISTORY).read_bytes().count(b"\n") - 1)
        return epochs

    def n_done(self, epochs: Mapping[Path, int]) -> int:
        """The number of epochs that are finished, of all trainings."""
        return sum(self.folders[folder] for folder in self.finished.copy()) + sum(epochs.values())

    def describe(self) -> str:
        """One line, such as "3 of 10 networks, epochs 11, 10 of 36, 14 min left"."""
        epochs = self.epochs()
        parts = [f"{len(self.finished)} of {len(self.folders)} networks"]
        if running := sorted((folder for folder in epochs if epochs[folder]), key=str):
            numbers = ", ".join(str(epochs[folder]) for folder in running)
            parts.append(f"epoch{'s' * (len(running) > 1)} {numbers} of {self.folders[running[0]]}")
        n_epochs, n_done = sum(self.folders.values()), self.n_done(epochs)
        n_new, n_left = n_done - self.at_start, n_epochs - n_done
        if n_new > max(1, FIRST_ESTIMATE * n_epochs):
            seconds = (time.monotonic() - self.start) * n_left / n_new
            parts.append(f"{seconds / 60:.0f} min left" if seconds >= 60 else f"{seconds:.0f} s left")
        return ", ".join(parts)


@contextlib.contextmanager
def show_progress(context: StageContext, folders: Mapping[Path, int]) -> Iterator[Progress]:
    """Show the progress until the end of the block, which adds to `finished`: in a bar, or in a line per minute."""
    progress, is_over = Progress(folders), threading.Event()

    def update_bar(bar: tqdm) -> None:
        while not is_over.wait(TERMINAL_INTERVAL):
            bar.n = progress.n_done(progress.epochs())
            bar.set_description_str(f"{context.stage.name}: {progress.describe()}")  # which draws the bar

    def write_lines(bar: tqdm) -> None:
        while not is_over.wait(LINE_INTERVAL):
            context.say(progress.describe())

    with tqdm(total=sum(folders.values()), bar_format="{desc} |{bar}|", leave=False, disable=None) as bar:
        target = update_bar if sys.stderr.isatty() else write_lines
        thread = threading.Thread(target=target, args=(bar,), daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            is_over.set()
            thread.join()
