"""The command line: its actions, signals and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline.cli import cleanup
from pipeline.cli.arguments import parse_arguments
from pipeline.cli.execute import run
from pipeline.cli.status import show_recipes, show_status
from pipeline.errors import PipelineError, StageError, explain, null_stream, one_line, show, show_error
from pipeline.workflow import locks


class Terminated(BaseException):
    """SIGTERM was received."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `2>&-`: the next file to be opened would get its descriptor
            setattr(sys, name, null_stream())
    options = parse_arguments(arguments)
    try:
        with _terminated_by_sigterm():
            if options.list:
                show_recipes()
            elif options.status:
                show_status(options)
            elif options.clean:
                clean(options)
            else:
                run(options)
        return 0
    except (KeyboardInterrupt, Terminated) as stop:
        _show_traceback(options)
        without = " without --force" if options.force else ""
        show_error(f"stopped: finished work is kept; the same command{without} continues from there")
        return 143 if isinstance(stop, Terminated) else 130
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _show_traceback(options)
        error = _explain_read_only(explain(error), options.workspace)
        show_error(f"error: {one_line(error)}")
        return error.exit_code if isinstance(error, PipelineError) else 1


@contextlib.contextmanager
def _terminated_by_sigterm() -> Iterator[None]:
    """Raise Terminated on SIGTERM; without effect in other threads than the main one, which cannot set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _explain_read_only(error: Exception, workspace: Path) -> Exception:
    """A StageError if a file of the workspace cannot be written, otherwise the same error."""
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return error
    path, roots = Path(os.fsdecode(error.filename or "")).resolve(), ("", "data", "submissions")
    if not any(path.is_relative_to((workspace / root).resolve()) for root in roots):
        return error
    return StageError(f"{error.filename}: {error.strerror}: choose a folder that you can write to with --workspace")


def _show_traceback(options: argparse.Namespace) -> None:
    for line in traceback.format_exc().splitlines() if options.debug else ():
        show_error(line)


def clean(options: argparse.Namespace) -> None:
    """List the files that nothing uses, or delete them."""
    with locks.lock_workspace(options.workspace, "clean", options.wait) if options.yes else contextlib.nullcontext():
        unused = cleanup.find_unused(options.workspace, options.set)
        for link in cleanup.linked_places(options.workspace):
            show(f"not cleaned: {link} is a link to {os.readlink(link)}")
        for path in unused:
            show(f"{'deleting' if options.yes else 'unused:'} {path}")
            if options.yes:
                cleanup.remove(path)
        if not unused:
            show("nothing is unused")
        elif not options.yes:
            show("--clean --yes deletes them")
