"""Runs of the command line that are killed, or whose writes are made to fail, at a chosen moment.

`python -m tests.interference` imports the pipeline once, then reads runs from stdin, a JSON object a line, and forks a
process for each: a run then takes as long as its work, not as long as importing PyTorch. `Runs` talks to it.

A moment ("point") is the time before or after a call that changes what is on the disk: a folder made, a file opened for
writing, written to, flushed, renamed or deleted. They are counted in the process that runs the command line.
"""

import builtins
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CALLS = ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir")  # of os, beside opening and writing


@dataclass
class Outcome:
    code: int  # of the process; minus the signal that ended it
    out: str
    err: str
    points: list[str]  # "before write checkpoint.pt", ... as they were passed
    seconds: float  # after the interference


class Runs:
    """A server that forks runs: `runs("--stage", "all", ..., stop=(at, signal))`."""

    def __init__(self):
        words = [sys.executable, "-m", "tests.interference"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "LOKY_MAX_CPU_COUNT": "2",
            "PIPELINE_TEST": str(os.getpid()),
        }
        self.server = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def __call__(self, *words, stop=None, fail=None, after=None):
        """Run the command line in a process of its own.

        stop: (point's number, signal): the process sends the signal to itself there.
        fail: (point's number, errno): the call at this "before" point fails.
        after: (seconds, signal): the signal is sent from outside.
        """
        request = {"words": [str(word) for word in words], "stop": stop, "fail": fail, "after": after}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return Outcome(**json.loads(self.server.stdout.readline()))

    def close(self):
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


class Points:
    """Counts the moments in this process, and interferes at one of them."""

    def __init__(self, note, stop, fail):
        self.note, self.stop, self.fail = note, stop, fail
        self.count = 0

    def install(self):
        for name in CALLS:
            setattr(os, name, self.around(name, getattr(os, name)))
        real_open = builtins.open

        def opened(file, mode="r", *arguments, **options):
            if not set(mode) & set("wax+") or not isinstance(file, str | os.PathLike) or os.fspath(file) == os.devnull:
                return real_open(file, mode, *arguments, **options)
            made = self.around("open", real_open)(file, mode, *arguments, **options)
            return Written(made, self) if "b" in mode else made

        builtins.open = opened

    def around(self, name, call):
        def interfered(*arguments, **options):
            shown = f"{name} {_named(arguments[0])}"
            self.passed(f"before {shown}", arguments[0])
            result = call(*arguments, **options)
            self.passed(f"after {shown}")
            return result

        return interfered

    def passed(self, point, path=None):
        number, self.count = self.count, self.count + 1
        os.write(self.note, f"{point}\n".encode())
        if self.stop and self.stop[0] == number:
            os.write(self.note, b"now\n")
            os.kill(os.getpid(), self.stop[1])
        if self.fail and self.fail[0] == number and point.startswith("before"):
            os.write(self.note, b"now\n")
            name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
            raise OSError(self.fail[1], os.strerror(self.fail[1]), name)


class Written:
    """A file opened for writing, whose writes are points too."""

    def __init__(self, file, points):
        self.file, self.points = file, points

    def write(self, data):
        return self.points.around("write", lambda _, data: self.file.write(data))(self.file.name, data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


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
        if request["after"]:
            seconds, number = request["after"]
            while time.monotonic() - began < seconds and not os.waitid(
                os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
            ):
                time.sleep(0.005)
            began = time.monotonic()
            os.kill(child, number)
        elif request["stop"]:
            while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.005)
                notes.seek(-4, os.SEEK_END) if notes.seek(0, os.SEEK_END) > 4 else None
                if notes.read(4) != b"now\n":
                    began = time.monotonic()
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - began
        texts = []
        for file in (out, err, notes):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    points = [line for line in texts[2].splitlines() if line != "now"]
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "out": texts[0], "err": texts[1], "points": points, "seconds": seconds}


def _child(request, out, err, notes):
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        import run_pipeline
        from pipeline.stages import fitting

        fitting.SAVE = 0  # each epoch's checkpoint is a point
        Points(notes.fileno(), request["stop"], request["fail"]).install()
        code = run_pipeline.main(request["words"])
    except BaseException:
        import traceback

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


ENOSPC, EIO, EACCES = errno.ENOSPC, errno.EIO, errno.EACCES

if __name__ == "__main__":
    main()
