"""Local processes that train side by side: how many, and that none lives on when its parent is gone."""

import _thread
import functools
import os
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


@functools.cache  # one thread a process
def end_after(parent):
    """End this process when its parent is gone: what trains is interrupted, and saves its last epoch before.

    One that has nothing to train would wait for ever to hand over a result.
    """

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        if busy.locked():
            _thread.interrupt_main()
        with busy:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
