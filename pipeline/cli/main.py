"""The command line: what runs, what is printed, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline.cli import cleanup, summary
from pipeline.cli.arguments import ALL_STAGES, parse_arguments
from pipeline.cli.status import show_recipes, show_status
from pipeline.cli.workflows import STAGES, make_run, make_workflow
from pipeline.errors import PipelineError, StageError, explain, null_stream, one_line, show, show_error
from pipeline.recipes import config
from pipeline.recipes.rules import find_unused
from pipeline.workflow import locks
from pipeline.workflow.checks import check_recipe_files, check_recipes
from pipeline.workflow.engine import Workflow
from pipeline.workflow.log import start_run
from pipeline.workflow.stage import load_function


class Terminated(BaseException):
    """SIGTERM was received."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `2>&-`: the next file to be opened would get its descriptor
            setattr(sys, name, null_stream())
    options = parse_arguments(arguments)
    with _terminated_by_sigterm():
        return _run(options)


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


def _run(options: argparse.Namespace) -> int:
    try:
        if options.list:
            show_recipes()
        elif options.status:
            show_status(options)
        elif options.clean:
            clean(options)
        elif command := ALL_STAGES[options.stage].command if options.stage in ALL_STAGES else "":
            load_function(command)(ALL_STAGES[options.stage], options, functools.partial(make_run, options))
            summary.warn_about_sample(options.workspace, show)
        else:
            for argument in config.recipes_in(options.recipe or "") or [options.recipe]:
                run(options, argument)
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
        unused = cleanup.find_unused(options.workspace, STAGES, options.set)
        for path in unused:
            show(f"{'deleting' if options.yes else 'unused:'} {path}")
            if options.yes:
                cleanup.remove(path)
        if not unused:
            show("nothing is unused")
        elif not options.yes:
            show("--clean --yes deletes them")


# --stage


def run(options: argparse.Namespace, argument: str | None) -> None:
    """Run one stage, or all that are missing or stale, for a recipe or a blend."""
    workflow = make_workflow(options, argument)
    requested = STAGES.get(options.stage)
    stages = [requested] if requested else [stage for stage in STAGES.values() if not stage.on_demand]
    check_recipes(stages, workflow.recipes)
    _check_options(options, workflow)
    parts = [workflow.for_recipe(recipe) for recipe in workflow.recipes]
    check_recipe_files(
        workflow, [part.folder(STAGES[name]) for part in parts for name in ("train", "generate") if name in STAGES]
    )
    about_device = ""
    if any(stage.uses_device for stage in stages):
        from pipeline.machine import devices  # not at the top: it imports torch

        workflow = replace(workflow, device=devices.choose_device(options.device))
        about_device = devices.describe_choice(workflow.device, options.device)
    for name in dict.fromkeys(stage.check for stage in stages if stage.check):
        load_function(name)(workflow.recipes, workflow.device)
    with start_run(options.workspace, options.stage, options.wait) as log:
        workflow = replace(workflow, log=log)
        if argument or options.stage != "download":
            hint = "" if argument else " (--recipe chooses another)"
            about = (
                workflow.recipe.about if len(workflow.recipes) == 1 else f"the mean of {len(workflow.recipes)} recipes"
            )
            workflow.say(f"recipe {workflow.name}: {about}{hint}")
            for recipe in workflow.recipes:
                of_recipe = f"{recipe.name}: " if len(workflow.recipes) > 1 else ""
                for note in find_unused(recipe):
                    workflow.say(f"note: {of_recipe}{note}")
        if about_device:
            workflow.say(about_device)
        workflow.restore()
        start = time.time()
        for stage in stages:
            if stage.ensures_inputs:
                for name in stage.inputs:
                    workflow.ensure_fresh(STAGES[name])
            elif requested:
                workflow.require_inputs(stage)
            workflow.ensure_fresh(stage, requested=bool(requested))
        if stages[-1].name == "predict":
            summary.show_result(workflow)
        _note_missing_observations(workflow, start)
        summary.warn_about_sample(options.workspace, workflow.say)


def _check_options(options: argparse.Namespace, workflow: Workflow) -> None:
    """Raise StageError for options that this recipe, or this machine, cannot use."""
    if options.engine != "local" and not options.engine.startswith("dask=tcp://"):
        raise StageError(f"--engine {options.engine}: expected local or dask=tcp://HOST:PORT")
    if options.engine != "local" and sum(recipe.n_networks for recipe in workflow.recipes) == 1:
        raise StageError(
            f"--engine {options.engine}: {workflow.name} trains a single network; --engine is for recipes with several"
        )
    if options.tracker == "tensorboard":
        from pipeline.reports.event_files import require_tensorboard

        require_tensorboard(options.workspace)


def _note_missing_observations(workflow: Workflow, start: float) -> None:
    """Say if a training is fresh and lacks the record or the event files that this run requests."""
    for part in (workflow.for_recipe(recipe) for recipe in workflow.recipes):
        folder = part.published_dir("train")
        if folder.exists() and folder.stat().st_mtime < start:
            missing = ["a record"] if part.recipe.train.record and not (folder / "record.json").exists() else []
            missing += ["event files"] if workflow.tracker != "none" else []
            if missing:
                command = f"--stage train{part.arguments}"
                workflow.say(
                    f"note: the training is fresh but lacks {' and '.join(missing)}: run {command} to add them"
                )
