"""Runs of the command line that are killed, or whose writes are made to fail, at a chosen moment.

`python -m tests.interference` imports the pipeline once, then reads runs from stdin, a JSON object a line, and forks a
process for each: a run then takes as long as its work, not as long as importing PyTorch. `Runs` talks to it.

A moment ("point") is the time before or after a call that changes what is on the disk: a folder made, a file opened for
writing, written to, flushed, renamed or deleted. They are counted in the process that runs the command line.
"""

import builtins
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 120  # seconds: a run that takes longer hangs, and is killed
NOW = "now"  # noted where a run is interfered with
NOW_LINE = f"\n{NOW}\n".encode()
CALLS = ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir")  # of os, beside opening and writing


@dataclass
class Outcome:
    code: int  # of the process; minus the signal that ended it
    out: str
    err: str
    points: list[str]  # "before write checkpoint.pt", ... as they were passed
    seconds: float  # after the signal, where there was one
    memory: int  # KB at most, of which the server's own are a few hundred thousand


class Runs:
    """A server that forks runs: `runs("--stage", "all", ..., kill=(at, signal))`."""

    def __init__(self, prefix=()):
        """prefix: words before the server's own: a program that starts it in surroundings of another kind."""
        words = [*prefix, sys.executable, "-m", "tests.interference"]
        mine = {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "2", "PIPELINE_TEST": str(os.getpid())}
        self.server = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | mine
        )

    def __call__(self, *words, kill=None, fail=None, fill=None, after=None):
        """Run the command line in a process of its own.

        kill: (point's number, signal): the process sends the signal to itself there.
        fail: (point's number, errno): the call at this "before" point fails.
        fill: (point's number, path): there a file at this path takes all room on its disk.
        after: (seconds, signal): the signal is sent from outside.
        """
        asked = {"kill": kill, "fail": fail, "fill": fill, "after": after}
        request = {name: value for name, value in asked.items() if value}
        self.server.stdin.write(json.dumps(request | {"words": [str(word) for word in words]}) + "\n")
        self.server.stdin.flush()
        return Outcome(**json.loads(self.server.stdout.readline()))

    def close(self):
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


class Points:
    """Counts the moments in this process while it is entered, and calls `action(point, path)` at number `at`."""

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
        made = self.around("open", self.real["open"])(file, mode, *arguments, **options)
        return Written(made, self) if "b" in mode else made

    def around(self, name, call):
        def watched(*arguments, **options):
            shown = f"{name} {_named(arguments[0])}"
            self.passed(f"before {shown}", arguments[0])
            result = call(*arguments, **options)
            self.passed(f"after {shown}", arguments[0])
            return result

        return watched

    def passed(self, point, path):
        number, self.count = self.count, self.count + 1
        self.note(point)
        if number == self.at:
            self.note(NOW)
            self.action(point, path)


class Written:
    """A file opened for writing, whose writes are points too."""

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
            named = [os.fspath(path)] if isinstance(path, str | os.PathLike) else []
            raise OSError(number, os.strerror(number), *named)

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


def _named(target):
    if isinstance(target, int):  # a file descriptor
        try:
            target = os.readlink(f"/proc/self/fd/{target}")
        except OSError:
            return "(a file)"
    return Path(os.fspath(target)).name.replace(f".{os.getpid()}.", ".PID.")


def _run(request):
    """Fork, run the command line there, and tell how it ended."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as notes:
        child = os.fork()
        if not child:
            _child(request, out, err, notes)
        began = time.monotonic()
        seconds, number = request.get("after", (float("inf"), None))
        while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.005)
            if time.monotonic() - began > seconds:
                os.kill(child, number)
                began, seconds = time.monotonic(), float("inf")
            elif time.monotonic() - began > LONGEST:
                os.kill(child, signal.SIGKILL)
            elif "kill" in request and NOW_LINE not in os.pread(notes.fileno(), 1 << 20, 0):
                began = time.monotonic()
        _, status, used = os.wait4(child, 0)
        seconds = time.monotonic() - began
        texts = []
        for file in (out, err, notes):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    points = [line for line in texts[2].splitlines() if line != NOW]
    code = os.waitstatus_to_exitcode(status)
    return {
        "code": code,
        "out": texts[0],
        "err": texts[1],
        "points": points,
        "seconds": seconds,
        "memory": used.ru_maxrss,
    }


def _child(request, out, err, notes):
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        import run_pipeline
        from pipeline.stages import fitting

        fitting.SAVE = 0  # each epoch's checkpoint is a point
        actions = {"kill": lambda number: lambda *point: os.kill(os.getpid(), number), "fail": failing, "fill": filling}
        at, action = None, None
        for name in actions.keys() & request.keys():
            at, action = request[name][0], actions[name](request[name][1])
        with Points(at, action, lambda point: os.write(notes.fileno(), f"{point}\n".encode())):
            code = run_pipeline.main(request["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    import run_pipeline  # noqa: F401
    from pipeline.stages import augment, blend, download, evaluate, predict, prepare, train  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
