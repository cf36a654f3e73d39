"""Where networks are trained: in this process, in local processes, on one or more GPUs, or on a Dask cluster."""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import filelock
import joblib
import torch

from pipeline.errors import StageError
from pipeline.machine.devices import choose_device, release_memory, usable_gpus
from pipeline.workflow.context import StageContext
from pipeline.workflow.locks import acquire_lock

IDLE_TIMEOUT = 5  # seconds after which a process without work ends
DASK_TIMEOUT = 10  # seconds to wait for a Dask scheduler
# Held while a process trains: torch's random number generators and thread count belong to the process.
_training = threading.Lock()
_own_gpus: set[int] = set()  # the GPUs that this process has trained on


class ParentGone(RuntimeError):
    """The process that started this training no longer waits for it."""


@dataclass(frozen=True)
class Pool:
    """Where the networks of a run are trained.

    engine: "local" or "dask=tcp://HOST:PORT".
    device: the device of this machine; on a Dask cluster each worker chooses by `requested_device`.
    """

    engine: str
    device: str
    requested_device: str

    def worker_device(self) -> str:
        """The kind of device that trains: this machine's, or the requested one for Dask workers."""
        return self.device if self.engine == "local" else self.requested_device

    def n_workers(self, threads: int, per_gpu: int) -> int:
        """The number of local processes that train at the same time. threads: CPU threads of each, on a CPU."""
        if self.device == "cpu":
            return max(1, int(joblib.cpu_count()) // threads)
        return per_gpu * len(usable_gpus()) if self.device == "cuda" else 1

    def run(
        self,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
        n_workers: int,
        in_process: Callable[..., Any],
    ) -> Iterator[Any]:
        """Call `function` with each tuple of arguments, several at a time; yields results in the order of completion.

        n_workers: local processes, at most.
        in_process: replaces `function` if the calls run one after another in this process.
        """
        if not arguments:
            return
        options: dict[str, Any] = {"backend": "loky", "idle_worker_timeout": IDLE_TIMEOUT}
        n_workers = min(n_workers, len(arguments))
        if self.engine != "local":
            self._dask_client()
            # Copies on every worker: if one dies, the others still have all arrays.
            arrays = {id(item): item for items in arguments for item in items if hasattr(item, "dtype")}
            options, n_workers = {"backend": "dask", "scatter": list(arrays.values())}, -1
        elif n_workers == 1:
            yield from (in_process(*items) for items in arguments)
            return
        with contextlib.ExitStack() as stack:
            if self.engine == "local" and self.device == "cuda":
                locks = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
                function = functools.partial(_call_on_own_gpu, locks, usable_gpus(), n_workers, function)
            stack.enter_context(joblib.parallel_config(**options))
            stack.enter_context(warnings.catch_warnings())
            # An idle worker that ends after IDLE_TIMEOUT is intended.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            parallel = joblib.Parallel(n_workers, return_as="generator_unordered", batch_size=1, mmap_mode="c")
            yield from parallel(joblib.delayed(function)(*items) for items in arguments)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of one short function call on a machine that trains."""
        if self.engine == "local":
            return function(*arguments)
        return self._dask_client().submit(function, *arguments, pure=False).result()

    def _dask_client(self) -> Any:
        """A client of the cluster. Raises StageError if it cannot be reached or is too small."""
        try:
            from distributed import get_client
        except ImportError:
            raise StageError("--engine dask=...: first run `pip install -r requirements/dask.txt`") from None
        address = self.engine.removeprefix("dask=")
        try:
            client = get_client(address, timeout=DASK_TIMEOUT)  # connects once; later calls return the same client
        except (OSError, ValueError, TimeoutError) as error:
            raise StageError(f"--engine {self.engine}: no Dask scheduler answers ({type(error).__name__})") from None
        if sum(client.ncores().values()) < 2:  # joblib would train in this process instead
            client.close()
            raise StageError(
                f"--engine {self.engine}: the cluster has fewer than two worker threads; "
                f"start more with `dask worker {address}`"
            )
        return client


def _call_on_own_gpu(
    locks: str, gpus: tuple[int, ...], n_workers: int, function: Callable[..., Any], *arguments: Any
) -> Any:
    """Call a function on the GPU of this process."""
    _take_gpu(locks, gpus, n_workers)
    return function(*arguments)


@functools.cache  # a process keeps its place until it ends
def _take_gpu(locks: str, gpus: tuple[int, ...], n_workers: int) -> filelock.BaseFileLock:
    """Select the GPU of the first place that no other process has taken; the places are on the GPUs in turn.

    The tasks of a GPU that is fast, or whose trainings are short, are not limited to a share that is fixed in advance.
    A process that has trained on a GPU before, for another recipe, stays there if it can: its CUDA context remains.
    locks: a folder with a lock file for each place.
    """
    while True:
        for number in sorted(range(n_workers), key=lambda number: gpus[number % len(gpus)] not in _own_gpus):
            path = os.path.join(locks, str(number))
            with contextlib.suppress(filelock.Timeout):
                lock = acquire_lock(path, advice="set TMPDIR to a folder on a local disk")
                with warnings.catch_warnings(action="ignore"):  # of unsupported GPUs, while CUDA starts
                    torch.cuda.set_device(gpus[number % len(gpus)])
                _own_gpus.add(gpus[number % len(gpus)])
                return lock
        time.sleep(0.1)  # a process that is replaced has not ended yet


@contextlib.contextmanager
def worker(parent: int, device: str, threads: int) -> Iterator[str]:
    """Prepare the current process for one training; yields the kind of device, "cpu", "cuda" or "mps".

    device: of `Pool.worker_device`. A Dask worker uses the GPU that was selected when it was started.
    In a child process, the process ends when its parent does.
    """
    if os.getpid() != parent and not _dask_worker():
        _end_with_parent(parent)
    threads_before = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_training)
        if _dask_worker():
            device = choose_device(device)
        if device == "cpu":
            torch.set_num_threads(threads)
        try:
            yield device
        except ParentGone:
            if os.getpid() == parent or _dask_worker():
                raise
            os._exit(1)  # joblib's worker process would continue for a while
        finally:
            torch.set_num_threads(threads_before)
            if device == "cuda":
                with contextlib.suppress(RuntimeError):  # after an error of CUDA, the first one is the one to report
                    release_memory()


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
    """End this process when its parent has ended; a training is interrupted.

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


def make_pool(context: StageContext) -> Pool:
    """The pool that the command line selects."""
    return Pool(context.run.engine, context.run.device, context.run.requested_device)
