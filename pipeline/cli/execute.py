"""--stage: what runs for the recipes of the command line, and in which order."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.cli import summary
from pipeline.cli.arguments import ENTRIES
from pipeline.cli.workflows import BLEND, STAGES, is_blend, join_workflows, list_recipes, make_workflow, split
from pipeline.errors import StageError
from pipeline.recipes.rules import find_unused
from pipeline.workflow.checks import check_recipe, check_recipe_file
from pipeline.workflow.engine import Workflow
from pipeline.workflow.joint import JointWorkflow
from pipeline.workflow.log import start_run
from pipeline.workflow.stage import Command, Stage, load_function


def run(options: argparse.Namespace) -> None:
    """Run a command, a stage, or all stages that are missing or stale, for each of the requested recipes."""
    entry, recipes = ENTRIES.get(options.stage), list_recipes(options)
    if isinstance(entry, Command):
        _run_command(options, entry, recipes)
        return
    stages = [entry] if entry else [stage for stage in STAGES.values() if not stage.on_demand]
    runs = [_check(options, make_workflow(options, recipe), stages) for recipe in recipes]
    joint = entry if entry and entry.join else BLEND if is_blend(options) else None
    if joint:  # refuses recipes before anything is written
        join_workflows(joint, split(options.recipe), runs, download=False)
    with start_run(options.workspace, options.stage, options.wait) as log:
        runs, done = [replace(run, log=log) for run in runs], set[Path]()
        for workflow in runs if stages[0] is not joint else ():
            _run_stages(options, workflow, stages, done)
        if joint:
            _run_joint(options, joint, runs, done)
        summary.warn_about_sample(runs[0])


def _check(options: argparse.Namespace, workflow: Workflow, stages: Sequence[Stage]) -> Workflow:
    """The run on its device. Raises UserError if a stage cannot run for its recipe, or on this machine."""
    for stage in stages:
        check_recipe(stage, workflow.recipe)
    for stage in STAGES.values() if not stages[0].join else ():
        if "{name}" in stage.folder:
            check_recipe_file(workflow, workflow.folder(stage))
    if options.engine != "local" and not options.engine.startswith("dask=tcp://"):
        raise StageError(f"--engine {options.engine}: expected local or dask=tcp://HOST:PORT")
    if options.engine != "local" and workflow.recipe.n_networks == 1 and not is_blend(options):
        raise StageError(
            f"--engine {options.engine}: {workflow.name} trains a single network; --engine is for recipes with several"
        )
    if options.tracker == "tensorboard":
        from pipeline.reports.event_files import require_tensorboard

        require_tensorboard(options.workspace)
    if any(stage.uses_device for stage in stages):
        workflow = _choose_device(options, workflow)
    for name in dict.fromkeys(stage.check for stage in stages if stage.check):
        load_function(name)(workflow.recipe, workflow.device)
    return workflow


def _choose_device(options: argparse.Namespace, workflow: Workflow) -> Workflow:
    from pipeline.machine import devices  # not at the top: it imports torch

    return replace(workflow, device=devices.choose_device(options.device))


def _introduce(options: argparse.Namespace, workflow: Workflow, uses_device: bool) -> Iterator[str]:
    """The first lines of a run."""
    if options.recipe or options.stage != "download":
        hint = "" if options.recipe else " (--recipe chooses another)"
        members = workflow.members if isinstance(workflow, JointWorkflow) else ()
        about = f"the mean of {len(members)} recipes" if members else workflow.recipe.about
        yield f"recipe {workflow.name}: {about}{hint}"
        for note in find_unused(workflow.recipe):
            yield f"note: {note}"
        if not options.recipe and workflow.name == "dropout_cnn":  # the default on CUDA
            yield f"note: more accurate in less time: {summary.recommend(workflow, 'standard')}"
    if uses_device:
        yield _describe_device(options, workflow)


def _describe_device(options: argparse.Namespace, workflow: Workflow) -> str:
    from pipeline.machine import devices  # not at the top: it imports torch

    return devices.describe_choice(workflow.device, options.device)


def _run_stages(options: argparse.Namespace, workflow: Workflow, stages: Sequence[Stage], done: set[Path]) -> None:
    """Run the stages of a recipe, except those whose results, which recipes may share, are done already."""
    for line in _introduce(options, workflow, any(stage.uses_device for stage in stages)):
        workflow.say(line)
    workflow.restore()
    has_trained, requested = False, options.stage != "all"
    for stage in stages:
        if stage.ensures_inputs:
            _ensure_inputs(workflow, stage, done)
        elif requested:
            workflow.require_fresh(stage.inputs, stage.name)
        if (folder := workflow.folder(stage)) not in done:
            done.add(folder)
            has_trained |= workflow.ensure_fresh(stage, requested) and stage.name == "train"
    if stages[-1].name == "predict":
        summary.show_result(workflow)
    if not has_trained:
        _note_missing_observations(workflow)


def _ensure_inputs(workflow: Workflow, stage: Stage, done: set[Path]) -> None:
    """Run the stages that a stage reads from, unless they are fresh; those in `done` are."""
    for name in stage.inputs:
        if (folder := workflow.folder(STAGES[name])) not in done:
            done.add(folder)
            workflow.ensure_fresh(STAGES[name])


def _run_joint(options: argparse.Namespace, stage: Stage, runs: Sequence[Workflow], done: set[Path]) -> None:
    """Run a stage that reads the results of several recipes."""
    first = runs[0]
    first.say(f"{stage.name}: {', '.join(run.name for run in runs)}")
    if options.stage != "all":
        for run in runs:
            for line in find_unused(run.recipe):
                run.say(f"note: {run.name}: {line}")
        if stage.uses_device:
            first.say(_describe_device(options, first))
    if stage.ensures_inputs:  # before they are joined: what a comparison trains on depends on the data
        first.restore()
        first.ensure_fresh(STAGES["download"])
        done.add(first.folder(STAGES["download"]))
    joint = join_workflows(stage, split(options.recipe), runs, download=True)
    joint.restore()
    for member in joint.members:
        check_recipe_file(member, joint.folder(stage))
        if stage.ensures_inputs:
            _ensure_inputs(member, stage, done)
        else:
            member.require_fresh(stage.inputs, stage.name)
    joint.ensure_fresh(stage, requested=options.stage != "all")
    if stage.receipt:
        summary.show_result(joint)


def _run_command(options: argparse.Namespace, command: Command, recipes: Sequence[str | None]) -> None:
    """Run a command for a recipe, or for a blend."""
    runs = [make_workflow(options, recipe) for recipe in recipes]
    for run in runs:
        check_recipe(command, run.recipe)
    workflow = runs[0]
    if BLEND and len(runs) > 1:
        workflow = join_workflows(BLEND, split(options.recipe), runs, download=False)
    if command.uses_device:
        workflow = _choose_device(options, workflow)
    with start_run(options.workspace, command.name, options.wait) as log:
        workflow = replace(workflow, log=log)
        for line in _introduce(options, workflow, command.uses_device):
            workflow.say(line)
        workflow.restore()
        load_function(command.run)(replace(workflow, prefix=f"{command.name}: "))
        summary.warn_about_sample(workflow)


def _note_missing_observations(workflow: Workflow) -> None:
    """Say if the training, which was fresh, lacks the record or the event files that this run requests."""
    folder = workflow.published_dir("train")
    missing = ["a record"] if workflow.recipe.train.record and not (folder / "record.json").exists() else []
    missing += ["event files"] if workflow.tracker != "none" else []
    if folder.exists() and missing:
        command = f"--stage train{workflow.arguments}"
        workflow.say(f"note: the training is fresh but lacks {' and '.join(missing)}: run {command} to add them")
