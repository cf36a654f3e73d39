"""From the options of the command line to a workflow."""

import argparse
import itertools
import shlex
from collections.abc import Iterable, Sequence

from pipeline.cli.arguments import ALL_STAGES, HOME
from pipeline.errors import StageError
from pipeline.recipes import config
from pipeline.recipes.settings import Recipe
from pipeline.workflow.engine import Workflow

STAGES = {name: stage for name, stage in ALL_STAGES.items() if not stage.command}  # those that the engine runs


def make_workflow(options: argparse.Namespace, argument: str | None) -> Workflow:
    """The workflow for the value of --recipe: a name, a file, or several with commas between."""
    argument = argument or _default_recipe(options)
    names = config.split_argument(argument)
    recipes = [config.load_recipe(name, options.set) for name in names]
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise StageError(f"--recipe {argument}: a recipe occurs twice")
    return make_run(options, STAGES, recipes, ",".join(names), options.set)


def make_run(
    options: argparse.Namespace,
    stages: Iterable[str],
    recipes: Sequence[Recipe],
    argument: str,
    assignments: Sequence[str],
) -> Workflow:
    """A run of these stages with the options of the command line; `argument` is the value of --recipe."""
    repeated = [("--workspace", str(options.workspace))] if options.workspace != HOME else []
    repeated += [("--data", options.data)] if options.data != "auto" else []
    repeated += [("--set", assignment) for assignment in options.set]
    repeated += [("--device", options.device)] if options.device != "auto" else []  # it also selects the default recipe
    # In two words, a value that begins with "-" would be an option.
    words = [[f"{name}={value}"] if value.startswith("-") else [name, value] for name, value in repeated]
    return Workflow(
        {name: ALL_STAGES[name] for name in stages},
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
    from pipeline.machine import devices  # not at the top: it imports torch

    return "dropout_cnn" if devices.choose_device(options.device) == "cuda" else "quick"
