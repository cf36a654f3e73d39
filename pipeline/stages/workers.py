"""Local processes that train side by side: how many, and that none lives on when its parent is gone."""

import _thread
import contextlib
import functools
import os
import signal
import threading
import time

from pipeline import artifacts

IDLE = 5  # seconds after which a process that has nothing to do ends
busy = threading.Lock()  # held while something trains: torch's random numbers and threads are the process's


def count(device, threads):
    """How many networks to train side by side, each with `threads` of the processor, or a GPU."""
    import joblib

    if device == "cpu":
        return max(1, joblib.cpu_count() // threads)
    import torch

    return torch.cuda.device_count() if device == "cuda" else 1


def options():
    """joblib's, for processes of this machine."""
    return {"backend": "loky", "idle_worker_timeout": IDLE}


@contextlib.contextmanager
def settled(device, threads, folder=None):
    """Context manager: train with `threads` CPU threads, or on a GPU that no other process uses.

    folder: where the processes of this machine lock the GPUs; None: take the first GPU that is visible.
    """
    import torch

    before = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        if device == "cpu":
            torch.set_num_threads(threads)
        elif device == "cuda" and folder:
            torch.cuda.set_device(stack.enter_context(free_gpu(folder, torch.cuda.device_count())))
        try:
            yield
        finally:
            torch.set_num_threads(before)
            if device == "cuda":
                torch.cuda.empty_cache()  # the next training of this process may be on another GPU


@contextlib.contextmanager
def free_gpu(folder, count):
    """The number of a GPU, of `count`, that no other process has locked in `folder`; waits until there is one.

    A lock rather than the process's number: joblib replaces processes and renumbers them. The lock of a
    process that dies is released by the operating system.
    """
    while True:
        for number in range(count):
            lock = artifacts.Lock(folder / f".gpu{number}.lock")
            with contextlib.suppress(artifacts.Held):
                lock.acquire({"gpu": number})
                break
        else:
            time.sleep(0.1)
            continue
        break
    try:
        yield number
    finally:
        lock.release()


@functools.cache  # one thread a process
def end_after(parent):
    """End this process when its parent is gone: what trains is interrupted, and saves its last epoch before.

    One that has nothing to train would wait for ever to hand over a result.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        if busy.locked():
            _thread.interrupt_main()
        with busy:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
