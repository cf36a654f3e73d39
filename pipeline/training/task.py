"""The training of one network in a folder, with checkpoints; runs in any process on any machine."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import StageError
from pipeline.machine.devices import choose_device, is_out_of_memory, out_of_memory, usable_gpus
from pipeline.machine.environment import describe_environment
from pipeline.nn.networks import serialize_network
from pipeline.nn.precision import choose_precision
from pipeline.nn.saved_tensors import load_tensors
from pipeline.nn.trainer import Checkpoint
from pipeline.training.arrays import TrainingArrays
from pipeline.training.pool import require_parent, worker
from pipeline.training.specs import Spec
from pipeline.workflow import locks, schemas, store
from pipeline.workflow.stage import load_function

History = list[dict[str, float]]  # a row per epoch

WEIGHTS, HISTORY, LOG, RECORD = "weights.safetensors", "history.csv", "log.txt", "record.json"
CHECKPOINT = "checkpoint.pt"
DIGEST_SIZE = 32  # bytes: a checkpoint file begins with the SHA-256 of the rest
# A checkpoint is saved after each epoch. If epochs are short, the interval grows until saving takes at most this share
# of the time, but not beyond this number of seconds.
SAVE_SHARE = 0.008
MAX_SAVE_INTERVAL = 4.0


@dataclass(frozen=True)
class TrainingTask:
    """Everything that a process needs to train one network, except the arrays."""

    spec: Spec
    device: str  # of `Pool.worker_device`; "auto" on a Dask cluster: whatever the worker has
    staging_dir: str  # as the parent sees it
    started: Mapping[str, Any]  # the content of started.json: a checkpoint with other content is not resumed
    parent: int  # process id
    array_names: tuple[str, ...]  # of `TrainingArrays`
    initial_weights: str = ""  # the file with ImageNet's, if the network starts from them


@dataclass
class TrainingOutcome:
    """The result of a training, which the parent publishes."""

    staging_dir: str
    files: dict[str, bytes] = field(default_factory=dict)
    history: History = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # of training and validation, including those before an interruption
    environment: dict[str, Any] = field(default_factory=dict)
    error: str = ""  # why the training diverged


def resolve_precision(precision: str, device: str, on_all_gpus: bool = False) -> str:
    """The precision in which this machine trains. Raises StageError if a GPU does not compute in `precision`.

    on_all_gpus: whether the trainings are distributed over all GPUs instead of the current one. If they differ, "auto"
        selects what all of them compute fast.
    """
    device = choose_device(device)
    if device != "cuda":
        return choose_precision(precision, device)
    precisions = []
    for number in usable_gpus() if on_all_gpus else usable_gpus()[:1]:
        with torch.cuda.device(number):
            if precision == "bf16" and torch.cuda.get_device_capability() < (7, 5):  # not even emulated
                raise StageError(f"{torch.cuda.get_device_name()} does not support bf16: omit train.precision")
            precisions.append(choose_precision(precision, device))
    return max(precisions, key=("bf16", "fp16", "fp32").index)


def train_network(
    task: TrainingTask,
    *arrays: NDArray[Any],
    on_epoch: Callable[[History], None] = lambda history: None,
    log: Callable[[str], None] = lambda message: None,
    progress_bar: bool = False,
) -> TrainingOutcome:
    """Train one network, continuing from its checkpoint if there is one.

    arrays: in the order of `task.array_names`.
    on_epoch: called with the history after each epoch; an exception stops the training after saving a checkpoint.
    log: called with each line that is written to log.txt.
    """
    data = TrainingArrays(**dict(zip(task.array_names, arrays, strict=True)))
    folder = Path(task.staging_dir)
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(worker(task.parent, task.device, task.spec.threads or 1))
        if store.read_json(folder / store.STARTED, schemas.Started) == task.started:
            # A process whose parent was killed may still be saving its checkpoint.
            stack.callback(locks.acquire_lock(folder.with_suffix(".lock"), wait=True).release)
        else:  # a machine that does not share the parent's disk
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        session = Session(task, folder, device, on_epoch, log, progress_bar)
        try:
            outcome: TrainingOutcome = load_function(task.spec.fit)(session, task.spec, data)
            return outcome
        except FloatingPointError as error:
            return TrainingOutcome(task.staging_dir, error=str(error))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(task.spec.section) from None


@dataclass
class Session:
    """The training of one network in a folder, with its log and its checkpoints."""

    task: TrainingTask
    folder: Path
    device: str
    on_epoch: Callable[[History], None]
    log: Callable[[str], None]
    progress_bar: bool

    def __post_init__(self) -> None:
        self.checkpoints = _Checkpoints(self.folder, self.task.started)
        self.epoch_start = time.monotonic()

    def note(self, message: str) -> None:
        """Add a line to log.txt."""
        store.append_line(self.folder / LOG, f"{time.strftime('%H:%M:%S')} {message}")
        self.log(message)

    def load_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that the training continues from, if there is one."""
        checkpoint = self.checkpoints.load()
        if checkpoint:
            self.note(f"continuing after epoch {checkpoint['epoch']}")
        return checkpoint

    def after_epoch(self, checkpoint: Checkpoint) -> None:
        """Save the checkpoint if it is time, and report the epoch."""
        is_saved, history = self.checkpoints.update(checkpoint), checkpoint["history"]
        try:
            seconds, self.epoch_start = time.monotonic() - self.epoch_start, time.monotonic()
            figures = ", ".join(f"{name} {value:.4g}" for name, value in history[-1].items())
            self.note(f"{figures}, {seconds:.1f} s")
            self.on_epoch(history)
            require_parent(self.task.parent)
        except BaseException:  # for example the parent has ended
            if not is_saved:
                self.checkpoints.save(checkpoint)
            raise

    def outcome(
        self,
        state_dict: Mapping[str, Tensor],
        metadata: Mapping[str, Any],
        history: History,
        numbers: Mapping[str, Any],
        settings: dict[str, Any],
    ) -> TrainingOutcome:
        """The outcome of a finished training. settings: those of the libraries."""
        files = {
            WEIGHTS: serialize_network(state_dict, metadata),
            HISTORY: history_to_csv(history),
            LOG: (self.folder / LOG).read_bytes(),
        }
        gpus = [torch.cuda.current_device()] if self.device == "cuda" else None
        environment = describe_environment(self.device, gpus) | settings
        seconds = self.checkpoints.seconds()
        return TrainingOutcome(self.task.staging_dir, files, history, dict(numbers), seconds, environment)


class _Checkpoints:
    """The checkpoint file of one training, and its history."""

    def __init__(self, folder: Path, started: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / CHECKPOINT
        self.key = hashlib.sha256(json.dumps(started, sort_keys=True).encode()).hexdigest()
        self.start, self.last_save, self.save_seconds = time.monotonic(), -math.inf, 0.0

    def seconds(self) -> float:
        """Seconds of training so far, including those before an interruption."""
        return time.monotonic() - self.start

    def load(self) -> Checkpoint | None:
        """The last saved checkpoint of the same training, or None. Raises StageError if the file is damaged."""
        if not self.path.exists():
            return None
        try:
            content = self.path.read_bytes()
            digest, content = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("its content does not match its checksum")
            checkpoint: Checkpoint = load_tensors(io.BytesIO(content))
            is_same = checkpoint.get("key") == self.key
            self.start -= checkpoint["seconds"] if is_same else 0
        except Exception as error:  # torch.load raises many kinds
            raise StageError(
                f"{self.path}: the checkpoint cannot be read ({error}); delete it to train this network from the start"
            ) from None
        return checkpoint if is_same else None

    def update(self, checkpoint: Checkpoint) -> bool:
        """Save a checkpoint if enough time has passed since the last one; returns whether it was saved."""
        is_due = time.monotonic() - self.last_save >= min(self.save_seconds / SAVE_SHARE, MAX_SAVE_INTERVAL)
        if is_due:
            self.save(checkpoint)
        return is_due

    def save(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint."""
        start = time.monotonic()
        buffer = io.BytesIO()
        torch.save({**checkpoint, "key": self.key, "seconds": self.seconds()}, buffer)
        content = buffer.getbuffer()
        store.write(self.path, [hashlib.sha256(content).digest(), content])
        store.write(self.folder / HISTORY, history_to_csv(checkpoint["history"]))
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - start


def read_history(path: Path, spec: Spec) -> History:
    """The rows of `history.csv` of a network. Raises StageError if they are not those of the spec's training."""
    try:
        history: History = history_from_csv(path.read_bytes())
        spec.check_history(history)
    except (ValueError, TypeError, AttributeError, csv.Error):
        raise store.damaged(path) from None
    return history


def history_to_csv(history: History) -> bytes:
    """The rows of a history as a CSV file."""
    text: str = pd.DataFrame(history).to_csv(index=False, lineterminator="\n")
    return text.encode()


def history_from_csv(content: bytes) -> History:
    """The rows of a CSV file that `history_to_csv` wrote. Raises ValueError, TypeError or csv.Error for another."""
    rows = csv.DictReader(io.StringIO(content.decode()))  # pandas.read_csv before version 3 loses the last digit
    return [
        {name: int(text) if text.isdecimal() else float(text) for name, text in row.items() if text} for row in rows
    ]
