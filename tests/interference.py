"""Runs of the command line that are killed, or whose writes fail, at a chosen point.

`python -m tests.interference` imports the pipeline once, then reads requests from stdin, one JSON object per line, and
forks a process for each run, so that a run does not have to import PyTorch. `Runs` is its client.

A point is the time before or after a call that changes the disk: a folder is created, or a file is opened for writing,
written, flushed, renamed or deleted. Points are counted in the process that runs the command line.
"""

import builtins
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent
TIMEOUT = 120  # seconds after which a run counts as hanging and is killed
REACHED = "reached"  # noted when the point of an interference is reached
CALLS = ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir")  # of os, beside opening and writing


@dataclass
class Outcome:
    code: int  # of the process; minus the signal that ended it
    out: str
    err: str
    points: list[str]  # "before write checkpoint.pt", ... in order
    seconds: float  # of the whole run; after the signal, if it got one
    memory: int  # maximum in KB, including a few hundred thousand of the server


class Runs:
    """A server that forks runs: `runs("--stage", "all", ..., kill=(at, signal))`."""

    def __init__(self, prefix=()):
        """prefix: a command that starts the server in a different environment, for example without permissions."""
        command = [*prefix, sys.executable, "-m", "tests.interference"]
        settings = {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "2", "PIPELINE_TEST": str(os.getpid())}
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | settings
        )

    def __call__(self, *arguments, **interference):
        """Run the command line in a process of its own; `interference` as for `start`."""
        return self.finish(self.start(*arguments, **interference))

    def start(self, *arguments, kill=None, fail=None, fill=None, after=None):
        """Start a run and return the number of its process.

        kill: (point, signal): the process sends the signal to itself there.
        fail: (point, errno): the call at this "before" point fails.
        fill: (point, path): there, a file at this path fills the disk.
        after: (seconds, signal): the signal is sent from outside; the time counts from the first point.

        A point is its number, or its name, for the first point of this name.
        """
        interference = {"kill": kill, "fail": fail, "fill": fill, "after": after}
        request = {name: value for name, value in interference.items() if value}
        return self._ask(request | {"arguments": [str(argument) for argument in arguments]})

    def finish(self, pid):
        """Wait for a run that `start` has started; returns its Outcome."""
        return Outcome(**self._ask({"finish": pid}))

    def _ask(self, request):
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self):
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


class Points:
    """Counts the points in this process inside a `with` statement.

    at: number or name of the point at which `action(point, path)` is called.
    """

    def __init__(self, at=None, action=None, note=lambda point: None):
        self.at, self.action, self.note = at, action, note
        self.count, self.real = 0, {}

    def __enter__(self):
        self.real = {name: getattr(os, name) for name in CALLS} | {"open": builtins.open}
        for name in CALLS:
            setattr(os, name, self.around(name, self.real[name]))
        builtins.open = self.open
        return self

    def __exit__(self, *error):
        builtins.open = self.real.pop("open")
        for name, call in self.real.items():
            setattr(os, name, call)

    def open(self, file, mode="r", *arguments, **options):
        if not set(mode) & set("wax+") or not isinstance(file, str | os.PathLike) or os.fspath(file) == os.devnull:
            return self.real["open"](file, mode, *arguments, **options)
        opened = self.around("open", self.real["open"])(file, mode, *arguments, **options)
        return WatchedFile(opened, self) if "b" in mode else opened

    def around(self, name, call):
        def watched(*arguments, **options):
            point = f"{name} {_file_name(arguments[0])}"
            self.passed(f"before {point}", arguments[0])
            result = call(*arguments, **options)
            self.passed(f"after {point}", arguments[0])
            return result

        return watched

    def passed(self, point, path):
        number, self.count = self.count, self.count + 1
        self.note(point)
        if self.at in (number, point):
            self.at = None
            self.note(REACHED)
            self.action(point, path)


class WatchedFile:
    """A file that is open for writing, whose writes are points too."""

    def __init__(self, file, points):
        self.file, self.points = file, points

    def write(self, data):
        return self.points.around("write", lambda path, data: self.file.write(data))(self.file.name, data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def failing(number):
    """The action that makes a call fail with an errno."""

    def act(point, path):
        if point.startswith("before"):
            name = [os.fspath(path)] if isinstance(path, str | os.PathLike) else []
            raise OSError(number, os.strerror(number), *name)

    return act


def filling(path):
    """The action that fills the disk with a file at `path`."""

    def act(point, _):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(file, bytes(1 << 12))
        os.close(file)

    return act


def interrupt(*arguments, **options):
    """In place of a function: Ctrl-C when it is called."""
    raise KeyboardInterrupt


def _file_name(target):
    if isinstance(target, int):  # a file descriptor
        try:
            target = os.readlink(f"/proc/self/fd/{target}")
        except OSError:
            return "(a file)"
    return Path(os.fspath(target)).name.replace(f".{os.getpid()}.", ".PID.")


@dataclass
class _Run:
    """A forked run."""

    request: dict[str, Any]
    pid: int = 0
    start: float = field(default_factory=time.monotonic)
    files: list[Any] = field(default_factory=lambda: [tempfile.TemporaryFile() for _ in range(3)])  # noqa: SIM115

    def fork(self):
        self.pid = os.fork()
        if not self.pid:
            _child(self.request, *self.files)
        return self.pid

    def finish(self):
        """Wait until the run has ended, and describe how."""
        start, (seconds, number) = self.start, self.request.get("after", (float("inf"), None))
        while not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.005)
            points, now = self.read(2), time.monotonic()
            if now - self.start > TIMEOUT:
                os.kill(self.pid, signal.SIGKILL)
            elif ("kill" in self.request and f"\n{REACHED}\n".encode() not in points) or (
                "after" in self.request and not points
            ):
                start = now
            elif now - start > seconds:
                os.kill(self.pid, number)
                start, seconds = now, float("inf")
        _, status, usage = os.wait4(self.pid, 0)
        out, err, notes = (self.read(number).decode("utf-8", "replace") for number in range(3))
        for file in self.files:
            file.close()
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": out,
            "err": err,
            "points": [line for line in notes.splitlines() if line != REACHED],
            "seconds": time.monotonic() - start,
            "memory": usage.ru_maxrss,
        }

    def read(self, number):
        # With an offset: the child writes at the position that it shares with this process.
        return os.pread(self.files[number].fileno(), 1 << 24, 0)


def _blank_png(figure):
    content = io.BytesIO()
    Image.new("L", (1, 1)).save(content, "PNG")
    return content.getvalue()


# Replacements in `style` of what takes a quarter of the time of a run on small tables.
BLANK = {"to_png": _blank_png, "draw_image": lambda *arguments: None}


def _child(request, out, err, notes):
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        from pipeline.cli.main import main
        from pipeline.reports import style
        from pipeline.training import task

        os.fsync = lambda descriptor: None  # a flush matters only in a power failure
        task.MAX_SAVE_INTERVAL = 0.0  # each epoch's checkpoint is a point
        for name, replacement in BLANK.items():
            setattr(style, name, replacement)
        actions = {"kill": lambda number: lambda *point: os.kill(os.getpid(), number), "fail": failing, "fill": filling}
        at, action = None, None
        for name in actions.keys() & request.keys():
            at, action = request[name][0], actions[name](request[name][1])
        with Points(at, action, lambda point: os.write(notes.fileno(), f"{point}\n".encode())):
            code = main(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    import sklearn.model_selection  # noqa: F401
    import torch._dynamo
    import torch.fx.experimental.symbolic_shapes  # noqa: F401

    from pipeline.dataset import sources, splits, tables  # noqa: F401
    from pipeline.nn import inference  # noqa: F401
    from pipeline.nn.networks import require_trainable
    from pipeline.recipes.settings import Model
    from pipeline.reports import training_figures
    from pipeline.training import (
        task,  # noqa: F401
    )

    # What PyTorch and matplotlib import or load with the first network and the first picture.
    require_trainable(Model(name="layers", layers=("conv 1 5x5", "batch_norm")), 2)
    history = [{"epoch": 1.0, "train_loss": 1.0, "validation_loss": 1.0, "validation_accuracy": 0.5}]
    training_figures.curves([history], "last")

    answers, runs = os.fdopen(os.dup(1), "w"), {}
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "finish" in request:
            answer = runs.pop(request["finish"]).finish()
        else:
            run = _Run(request)
            answer = run.fork()
            runs[answer] = run
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
