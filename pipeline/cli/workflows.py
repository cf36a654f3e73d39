"""From the options of the command line to runs; only here, a value of --recipe is taken apart."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.cli.arguments import ENTRIES, HOME
from pipeline.errors import StageError
from pipeline.recipes import config
from pipeline.workflow.engine import Workflow
from pipeline.workflow.joint import JointWorkflow
from pipeline.workflow.stage import Command, Stage, load_function

STAGES = {name: entry for name, entry in ENTRIES.items() if isinstance(entry, Stage) and not entry.join}
JOINT = {name: entry for name, entry in ENTRIES.items() if isinstance(entry, Stage) and entry.join}
# The stage that makes one submission of several recipes' results, which --recipe a,b requests.
BLEND = next((stage for stage in JOINT.values() if stage.receipt), None)


def split(argument: str) -> list[str]:
    """The names, and the absolute paths of recipe files, in a value of --recipe such as "quick,mine.toml"."""
    names = [argument] if os.path.isfile(config.expand_home(argument)) else argument.split(",")
    return [str(Path(config.expand_home(name)).absolute()) if name.endswith(".toml") else name for name in names]


def expand(names: Iterable[str]) -> list[str]:
    """The recipes without duplicates; the name of a folder is replaced by its recipes."""
    return list(dict.fromkeys(recipe for name in names for recipe in config.recipes_in(name) or [name]))


def is_blend(options: argparse.Namespace) -> bool:
    """Whether the mean of several recipes is requested."""
    entry = ENTRIES.get(options.stage)
    can_blend = entry.can_blend if isinstance(entry, Command) else entry in (None, BLEND)
    return bool(BLEND and can_blend and options.recipe and len(split(options.recipe)) > 1)


def list_recipes(options: argparse.Namespace) -> list[str | None]:
    """The recipes of --recipe; [None] without it. Raises StageError for several if the stage is for one."""
    if not options.recipe:
        return [None]
    entry, names = ENTRIES.get(options.stage), split(options.recipe)
    recipes, stage = expand(names), f"--stage {options.stage or 'all'} --recipe {options.recipe}"
    if options.stage in JOINT or is_blend(options):
        for name in names if len(names) > 1 else ():
            if "," in name:
                raise StageError(f"{name}: a path with a comma cannot be one of several recipes: rename the folder")
            if names.count(name) > 1:
                raise StageError(f"--recipe {options.recipe}: {name} occurs twice")
    elif len(names) > 1:
        hint = f"; --stage all runs each of them and --stage {BLEND.name} averages them" if BLEND else ""
        raise StageError(f"{stage}: one recipe at a time{hint}")
    elif recipes != names and entry and not (isinstance(entry, Stage) and entry.depends_on_recipe):
        raise StageError(f"{stage}: one recipe at a time")
    return [*recipes]


def make_workflow(
    options: argparse.Namespace, recipe: str | None, assignments: Sequence[str] | None = None
) -> Workflow:
    """The run for a recipe: its name, or its file. assignments: the values of --set, if they are not the options'."""
    repeated = [("--workspace", str(options.workspace))] if options.workspace != HOME else []
    repeated += [("--data", options.data)] if options.data != "auto" else []
    repeated += [("--device", options.device)] if options.device != "auto" else []  # it also selects the default recipe
    # In two words, a value that begins with "-" would be an option.
    words = [[f"{name}={value}"] if value.startswith("-") else [name, value] for name, value in repeated]
    assignments = options.set if assignments is None else assignments
    return Workflow(
        STAGES,
        options.workspace,
        config.load_recipe(_default_recipe(options) if recipe is None else recipe, assignments),
        tuple(assignments),
        "".join(f" {shlex.quote(word)}" for word in itertools.chain(*words)),
        data=options.data,
        requested_device=options.device,
        tracker=options.tracker,
        engine=options.engine,
        force=options.force,
        images=tuple(options.images or ()),
    )


def join_workflows(stage: Stage, names: Sequence[str], runs: Sequence[Workflow], download: bool) -> JointWorkflow:
    """The run of a stage that reads the results of several recipes, from a run for each of them.

    names: the recipes, or folders of recipes, as in --recipe.
    download: whether what a run needs may be downloaded.
    """
    joint: JointWorkflow = load_function(stage.join)(stage, names, runs, download)
    return joint


def _default_recipe(options: argparse.Namespace) -> str:
    """The recipe if --recipe is missing: it depends on the device that the run will use."""
    if not options.stage:
        return "quick"  # to choose the device would import PyTorch
    if (entry := ENTRIES.get(options.stage)) and entry.default_recipe:
        return entry.default_recipe
    from pipeline.machine import devices  # not at the top: it imports torch

    return "dropout_cnn" if devices.choose_device(options.device) == "cuda" else "quick"
