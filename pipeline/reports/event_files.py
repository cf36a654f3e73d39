"""Event files for TensorBoard (`--tracker tensorboard`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def require_tensorboard(workspace: Path) -> None:
    """Raise StageError if TensorBoard is not installed, or cannot write to the workspace."""
    try:
        str(workspace).encode()
    except UnicodeEncodeError:
        raise StageError(f"--tracker tensorboard: {workspace}: TensorBoard requires a path in UTF-8") from None
    if not importlib.util.find_spec("tensorboard"):
        raise StageError("--tracker tensorboard: install it first: pip install -r requirements/tensorboard.txt")


class EventWriter:
    """Writes the histories of trainings as they grow: a folder for each named network, each row once.

    Each call flushes, so that the events are complete up to the last epoch if the process is killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}
        self._n_written: dict[str, int] = {}

    def write(self, history: Sequence[Mapping[str, float]], network_name: str = "") -> None:
        """Write the rows that are new since the last call; `network_name` is "" for a single network."""
        from torch.utils.tensorboard import SummaryWriter

        new_rows = history[self._n_written.get(network_name, 0) :]
        if not new_rows:
            return
        if network_name not in self._writers:
            self._writers[network_name] = SummaryWriter(str(self.folder / network_name))
        writer = self._writers[network_name]
        for row in new_rows:
            for name, value in row.items():
                if name != "epoch":
                    tag = name.replace("train_", "train/").replace("validation_", "validation/")
                    writer.add_scalar(tag, value, int(row["epoch"]))
        writer.flush()
        self._n_written[network_name] = len(history)
