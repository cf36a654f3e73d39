"""Where networks are trained: in this process, in local processes, on one or more GPUs, or on a Dask cluster."""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from pipeline.errors import StageError

IDLE_TIMEOUT = 5  # seconds after which a process without work ends
DASK_TIMEOUT = 10  # seconds to wait for a Dask scheduler
# Held while a process trains: torch's random number generators and thread count belong to the process.
_training = threading.Lock()


class ParentGone(RuntimeError):
    """The process that started this training no longer waits for it."""


def has_device(device: str) -> bool:
    """Whether PyTorch can use a device of this kind on this machine."""
    import torch  # not at the top: --status, --list and --help must start quickly

    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]


def choose_device(requested: str) -> str:
    """The device to compute on. Raises StageError if this machine does not have the requested device."""
    if requested == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if has_device(device))
    if not has_device(requested):
        raise StageError(f"--device {requested}: PyTorch finds no such device here; omit --device or use --device cpu")
    return requested


def check_engine(engine: str) -> None:
    """Raise StageError if the value of --engine is not valid."""
    if engine != "local" and not engine.startswith("dask=tcp://"):
        raise StageError(f"--engine {engine}: expected local or dask=tcp://HOST:PORT")


@dataclass(frozen=True)
class Pool:
    """Where the networks of a run are trained.

    engine: "local" or "dask=tcp://HOST:PORT".
    device: the device of this machine; on a Dask cluster each worker chooses by `requested_device`.
    lock_dir: where local processes lock the GPUs that they use.
    """

    engine: str
    device: str
    requested_device: str
    lock_dir: Path

    def worker_device(self) -> str:
        """The value of `device` for `worker`: this machine's, or the requested one for Dask workers."""
        return self.device if self.engine == "local" else self.requested_device

    def run(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        threads: int,
        in_process: Callable[..., Any],
    ) -> Iterator[Any]:
        """Call `function` with each tuple of arguments, several at a time; yields results in the order of completion.

        threads: CPU threads of each call.
        in_process: replaces `function` if the calls run one after another in this process.
        """
        import joblib

        if not arguments:
            return
        options: dict[str, Any] = {"backend": "loky", "idle_worker_timeout": IDLE_TIMEOUT}
        n_workers = min(self._n_local_workers(threads), len(arguments))
        if self.engine != "local":
            self._dask_client()
            # Copies on every worker: if one dies, the others still have all arrays.
            arrays = {id(item): item for items in arguments for item in items if hasattr(item, "dtype")}
            options, n_workers = {"backend": "dask", "scatter": list(arrays.values())}, -1
        elif n_workers == 1:
            yield from (in_process(*items) for items in arguments)
            return
        with joblib.parallel_config(**options), warnings.catch_warnings():
            # An idle worker that ends after IDLE_TIMEOUT is intended.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            parallel = joblib.Parallel(n_workers, return_as="generator_unordered", batch_size=1, mmap_mode="c")
            yield from parallel(joblib.delayed(function)(*items) for items in arguments)

    def _n_local_workers(self, threads: int) -> int:
        if self.device == "cpu":
            import joblib

            return max(1, int(joblib.cpu_count()) // threads)
        import torch

        return int(torch.cuda.device_count()) if self.device == "cuda" else 1

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of one short function call on a machine that trains."""
        if self.engine == "local":
            return function(*arguments)
        return self._dask_client().submit(function, *arguments, pure=False).result()

    def _dask_client(self) -> Any:
        """A client of the cluster. Raises StageError if it cannot be reached or is too small."""
        try:
            from distributed import Client
        except ImportError:
            raise StageError("--engine dask=...: first run `pip install -r requirements/dask.txt`") from None
        address = self.engine.removeprefix("dask=")
        try:
            client: Any = Client(address, timeout=DASK_TIMEOUT, set_as_default=True)
        except (OSError, ValueError, TimeoutError) as error:
            raise StageError(f"--engine {self.engine}: no Dask scheduler answers ({type(error).__name__})") from None
        if sum(client.ncores().values()) < 2:  # joblib would train in this process instead
            client.close()
            raise StageError(
                f"--engine {self.engine}: the cluster has fewer than two worker threads; "
                f"start more with `dask worker {address}`"
            )
        return client


@contextlib.contextmanager
def worker(parent: int, device: str, threads: int, lock_dir: Path) -> Iterator[str]:
    """Prepare the current process for one training; yields the device, "cpu", "cuda" or "mps".

    In a child process, the process ends when its parent does.
    """
    import torch

    if os.getpid() != parent and not _dask_worker():
        _end_with_parent(parent)
    threads_before = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_training)
        device = choose_device(device)
        if device == "cpu":
            torch.set_num_threads(threads)
        elif device == "cuda" and not _dask_worker():  # a Dask worker's GPU is chosen by whoever starts the worker
            torch.cuda.set_device(stack.enter_context(free_gpu(lock_dir, torch.cuda.device_count())))
        try:
            yield device
        except ParentGone:
            if os.getpid() == parent or _dask_worker():
                raise
            os._exit(1)  # joblib's worker process would continue for a while
        finally:
            torch.set_num_threads(threads_before)
            if device == "cuda":
                torch.cuda.empty_cache()  # the next training of this process may use another GPU


@contextlib.contextmanager
def free_gpu(lock_dir: Path, count: int) -> Iterator[int]:
    """Lock one of `count` GPUs that no other process has locked, and yield its number; waits until one is free.

    Locks rather than the number of the process, because joblib replaces processes and renumbers them. The operating
    system releases the lock of a process that dies.
    """
    while True:
        for number in range(count):
            lock = filelock.FileLock(lock_dir / f".gpu{number}.lock")
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                continue
            try:
                yield number
            finally:
                lock.release()
            return
        time.sleep(0.1)


def require_parent(parent: int) -> None:
    """Raise ParentGone if the process that requested this training has ended, or no longer waits for it."""
    if dask_worker := _dask_worker():
        task = dask_worker.state.tasks.get(dask_worker.get_current_task())
        gone = task is None or task.state in ("cancelled", "resumed")
    else:
        gone = parent not in (os.getpid(), os.getppid())
    if gone:
        raise ParentGone("the process that requested this training has ended")


def _dask_worker() -> Any:
    """The Dask worker that this thread belongs to, or None."""
    if "distributed" in sys.modules:
        with contextlib.suppress(ValueError):
            return sys.modules["distributed"].get_worker()
    return None


@functools.cache  # one thread per process
def _end_with_parent(parent: int) -> None:
    """End this process when its parent has ended; a training is interrupted, so that it saves its last epoch first.

    An idle worker would block forever on the result queue.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if _training.locked():
            _thread.interrupt_main()
        with _training:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
