"""The command line: what runs, what is printed, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline import cleanup, config, devices, imagenet, locks, pool, publishing, schemas, store, summary
from pipeline.arguments import HOME, parse_arguments
from pipeline.declarations import Stage, State
from pipeline.errors import PipelineError, StageError, explain, null_stream, show, show_error
from pipeline.run_log import start_run
from pipeline.settings import Recipe
from pipeline.stages import COMPARISON_STAGES, STAGES
from pipeline.stages import compare as comparison
from pipeline.workflow import Workflow


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
        elif options.stage == "compare":
            compare(options)
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
        show_error(f"error: {_one_line(error)}")
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


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, PipelineError):
        return str(error)
    message = " ".join(str(error).split())
    explained = isinstance(error, ValueError) and message
    return message if explained else f"{type(error).__name__}: {message}"


# --list, --status, --clean


def show_recipes() -> None:
    """Print a line for each built-in recipe."""
    recipes = [config.load_recipe(name) for name in config.recipe_names()]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        show(f"{recipe.name:<{width}}  {recipe.about}")


def show_status(options: argparse.Namespace) -> None:
    """Print a table for the requested recipe, or for every recipe that has runs; and a line for each comparison."""
    with_runs = [] if options.recipe else cleanup.recipes_with_runs(options.workspace)
    requested = config.recipes_in(options.recipe) or [options.recipe] if options.recipe else with_runs
    for argument in requested or ["quick"]:
        try:
            lines = list(_recipe_status(options, argument))
        except (PipelineError, OSError, ValueError) as error:
            if options.recipe:
                raise
            lines = [f"a recipe that has runs cannot be read: {_one_line(error)}"]
        if not requested:
            lines[0] += " (no recipe has runs yet)"
        for line in lines:
            show(line)
    if not options.recipe:
        for line in _comparison_status(options):
            show(line)


def _recipe_status(options: argparse.Namespace, argument: str) -> Iterator[str]:
    """The table of a recipe's stages."""
    workflow = _workflow(options, argument)
    yield f"recipe {workflow.name}"
    known: dict[tuple[str, str], State] = {}
    for stage in STAGES.values():
        is_for_classifiers = stage.recipes == "classifiers" and any(recipe.has_gan for recipe in workflow.recipes)
        if stage.folder and not is_for_classifiers:
            state = workflow.state(stage, known)
            if not stage.on_demand or state.status != "missing" or state.reason:
                yield f"  {stage.name:<10}{state.status:<9}{state.reason}".rstrip()


def _comparison_status(options: argparse.Namespace) -> Iterator[str]:
    """A line for each comparison in the workspace: fresh, stale (and why) or interrupted."""
    contexts = {
        path.parent.name.removesuffix(".partial"): path
        for path in sorted((options.workspace / "data/compare").glob(f"*/{store.CONTEXT}"), reverse=True)
    }
    for title, path in sorted(contexts.items()):
        context = store.read_json(path, schemas.Context)
        if context is None or not context.get("recipe"):
            yield f"comparison {title}: {store.CONTEXT} is damaged"
            continue
        assignments = context.get("assignments", ())
        try:
            recipes = comparison.load_recipes(context["recipe"], assignments)
            left_out = imagenet.find_unavailable(recipes, (), options.workspace, download=False)
            recipes = [recipe for recipe in recipes if recipe.name not in left_out] or recipes
            workflow = _comparison(options, recipes, context["recipe"], assignments)
            state = workflow.state(comparison.STAGE)
            yield f"comparison {title}: {state}"
        except (PipelineError, OSError, ValueError) as error:
            yield f"comparison {title}: cannot be read ({error})"


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
    workflow = _workflow(options, argument)
    requested = STAGES.get(options.stage)
    stages = [requested] if requested else [stage for stage in STAGES.values() if not stage.on_demand]
    _check_recipes(stages, workflow.recipes)
    _check_options(options, workflow)
    parts = [workflow.for_recipe(recipe) for recipe in workflow.recipes]
    _check_recipe_files(workflow, [part.folder(STAGES[name]) for part in parts for name in ("train", "generate")])
    uses_device = any(stage.uses_device for stage in stages)
    if uses_device:
        workflow.device = devices.choose_device(options.device)
    if any(stage.name in ("train", "generate") for stage in stages):
        from pipeline.footprint import check_networks

        check_networks(workflow.recipes, workflow.device)
    with start_run(options.workspace, options.stage, options.wait) as workflow.log:
        if argument or options.stage != "download":
            hint = "" if argument else " (--recipe chooses another)"
            about = (
                workflow.recipe.about if len(workflow.recipes) == 1 else f"the mean of {len(workflow.recipes)} recipes"
            )
            workflow.say(f"recipe {workflow.name}: {about}{hint}")
        if uses_device:
            workflow.say(devices.describe_choice(workflow.device, options.device))
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
        summary.warn_about_sample(workflow)


def _check_options(options: argparse.Namespace, workflow: Workflow) -> None:
    """Raise StageError for options that this recipe, or this machine, cannot use."""
    pool.check_engine(options.engine)
    if options.engine != "local" and sum(recipe.n_networks for recipe in workflow.recipes) == 1:
        raise StageError(
            f"--engine {options.engine}: {workflow.name} trains a single network; --engine is for recipes with several"
        )
    if options.tracker == "tensorboard":
        from pipeline.reports.event_files import require_tensorboard

        require_tensorboard(options.workspace)


def _check_recipes(stages: Sequence[Stage], recipes: Sequence[Recipe]) -> None:
    """Raise StageError for recipes that a stage is not for."""
    for stage, recipe in itertools.product(stages, recipes):
        if stage.single_recipe and len(recipes) > 1:
            names = ",".join(recipe.file or recipe.name for recipe in recipes)
            raise StageError(f"--stage {stage.name} --recipe {names}: choose one recipe")
        if stage.recipes == "classifiers" and recipe.has_gan:
            argument = shlex.quote(recipe.file or recipe.name)
            raise StageError(f"{recipe.name} trains a GAN, not a classifier: run --stage generate --recipe {argument}")
        if stage.recipes == "gans" and not recipe.has_gan:
            raise StageError(f"{recipe.name} has no GAN (gan.architecture is none): choose a recipe such as gan/better")


def _check_recipe_files(workflow: Workflow, folders: Iterable[Path]) -> None:
    """Raise StageError if a folder, which has the name of a recipe, has the results of another file of this name.

    A file that no longer exists was moved, probably with its workspace: it is not another one.
    """
    for folder, recipe in itertools.product(folders, workflow.recipes):
        for place in (publishing.published_dir(folder), publishing.staging_dir(folder)):
            argument = (store.read_json(place / store.CONTEXT, schemas.Context) or {}).get("recipe", "")
            for other in config.split_argument(argument):
                is_other = recipe.file and Path(other).name == Path(recipe.file).name and os.path.isfile(other)
                if is_other and store.sha256(other) != store.sha256(recipe.file) and not workflow.force:
                    raise StageError(
                        f"{recipe.file}: {folder} has the results of {other}, which has the same name: rename one of "
                        "the files, or use --force to replace these results"
                    )


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


def compare(options: argparse.Namespace) -> None:
    """Train each recipe with each seed where that is missing, and write the table of the comparison."""
    from pipeline.footprint import check_networks  # not at the top: --status must start quickly

    assignments = [*options.set]
    assignments += [f"compare.seeds={options.seeds}"] * (options.seeds is not None)
    assignments += ["compare.ensemble=true"] * options.ensemble
    argument = ",".join(config.split_argument(options.recipe))
    recipes = comparison.load_recipes(argument, assignments)
    _check_recipes([comparison.STAGE], recipes)
    device = devices.choose_device(options.device)
    check_networks(recipes, device)
    with start_run(options.workspace, options.stage, options.wait) as log:
        left_out = imagenet.find_unavailable(recipes, config.split_argument(argument), options.workspace)
        recipes = [recipe for recipe in recipes if recipe.name not in left_out]
        if not recipes:
            raise StageError(f"--recipe {argument}: {next(iter(left_out.values()))}")
        first = _workflow(options, recipes[0].file or recipes[0].name)
        first.log = log
        for name, reason in left_out.items():
            first.say(f"compare: {name} is left out: {reason}")
        first.say(f"compare: {', '.join(recipe.name for recipe in recipes)}")
        for assignment in assignments:
            if assignment.startswith("predict."):
                first.say(f"compare: {assignment} has no effect: networks are compared without shifted copies")
        first.say(devices.describe_choice(device, options.device))
        first.restore()
        first.ensure_fresh(STAGES["download"])
        # Not before: whether the recipes train on all rows depends on the data.
        workflow = _comparison(options, recipes, argument, assignments)
        workflow.log, workflow.device = log, device
        _check_recipe_files(workflow, [workflow.folder(comparison.STAGE)])
        workflow.restore()
        for name in comparison.STAGE.inputs:
            if name != "download":
                workflow.ensure_fresh(STAGES[name])
        workflow.ensure_fresh(comparison.STAGE, requested=True)
        folder = workflow.published_dir("compare")
        _, table, page = (summary.display_path(folder / name) for name in COMPARISON_STAGES["compare"].outputs)
        workflow.say(f"table: {table}; page: {page}")
        summary.warn_about_sample(workflow)


def _workflow(options: argparse.Namespace, argument: str | None) -> Workflow:
    """The workflow for the value of --recipe: a name, a file, or several with commas between."""
    argument = argument or _default_recipe(options)
    names = config.split_argument(argument)
    recipes = [config.load_recipe(name, options.set) for name in names]
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise StageError(f"--recipe {argument}: a recipe occurs twice")
    return _make_workflow(options, STAGES, recipes, ",".join(names), options.set)


def _comparison(
    options: argparse.Namespace, recipes: Sequence[Recipe], argument: str, assignments: Sequence[str]
) -> Workflow:
    """The workflow of a comparison of recipes."""
    workflow = _make_workflow(options, COMPARISON_STAGES, recipes, argument, assignments)
    workflow.recipes = comparison.adapt_to_data(workflow)
    workflow.title = comparison.make_title(argument, assignments)
    return workflow


def _make_workflow(
    options: argparse.Namespace,
    stages: Mapping[str, Stage],
    recipes: Sequence[Recipe],
    argument: str,
    assignments: Sequence[str],
) -> Workflow:
    """The workflow with the options of the command line; `argument` is the value of --recipe."""
    repeated = [("--workspace", str(options.workspace))] if options.workspace != HOME else []
    repeated += [("--data", options.data)] if options.data != "auto" else []
    repeated += [("--set", assignment) for assignment in options.set]
    repeated += [("--device", options.device)] if options.device != "auto" else []  # it also selects the default recipe
    # In two words, a value that begins with "-" would be an option.
    words = [[f"{name}={value}"] if value.startswith("-") else [name, value] for name, value in repeated]
    return Workflow(
        stages,
        options.workspace,
        tuple(recipes),
        argument,
        tuple(assignments),
        "".join(f" {shlex.quote(word)}" for word in itertools.chain(*words)),
        data=options.data,
        requested_device=options.device,
        tracker=options.tracker,
        engine=options.engine,
        force=options.force,
        images=tuple(options.images or ()),
    )


def _default_recipe(options: argparse.Namespace) -> str:
    """The recipe if --recipe is missing: it depends on the device that the run will use."""
    if not options.stage:
        return "quick"  # to choose the device would import PyTorch
    if options.stage in STAGES and (name := STAGES[options.stage].default_recipe):
        return name
    return "dropout_cnn" if devices.choose_device(options.device) == "cuda" else "quick"
