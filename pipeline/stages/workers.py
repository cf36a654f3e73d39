"""Local processes that train side by side: how many, and that none lives on when its parent is gone."""

import _thread
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time

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
def settled(device, threads):
    """Train within this on so many threads of the processor, or on a GPU of one's own."""
    import torch

    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(threads)
    elif device == "cuda":
        torch.cuda.set_device(_number(multiprocessing.current_process().name) % torch.cuda.device_count())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _number(process):
    """Which of joblib's local processes, so that each takes a GPU of its own; any other takes the first it sees."""
    return int(process.rpartition("-")[2]) - 1 if process.startswith("LokyProcess-") else 0


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
