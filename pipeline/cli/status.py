"""--list and --status: the recipes, and which results are fresh, stale or missing."""

import argparse
import functools
from collections.abc import Iterator

from pipeline.cli import cleanup
from pipeline.cli.arguments import ALL_STAGES
from pipeline.cli.workflows import STAGES, make_run, make_workflow
from pipeline.errors import PipelineError, one_line, show
from pipeline.recipes import config
from pipeline.workflow.stage import State, load_function


def show_recipes() -> None:
    """Print a line for each built-in recipe."""
    recipes = [config.load_recipe(name) for name in config.recipe_names()]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        show(f"{recipe.name:<{width}}  {recipe.about}")


def show_status(options: argparse.Namespace) -> None:
    """Print a table for the requested recipe, or for every recipe that has runs; and the lines of extras."""
    with_runs = [] if options.recipe else cleanup.recipes_with_runs(options.workspace)
    requested = config.recipes_in(options.recipe) or [options.recipe] if options.recipe else with_runs
    for argument in requested or ["quick"]:
        try:
            lines = list(_recipe_status(options, argument))
        except (PipelineError, OSError, ValueError) as error:
            if options.recipe:
                raise
            lines = [f"a recipe that has runs cannot be read: {one_line(error)}"]
        if not requested:
            lines[0] += " (no recipe has runs yet)"
        for line in lines:
            show(line)
    if not options.recipe:
        for stage in ALL_STAGES.values():
            if stage.status:
                for line in load_function(stage.status)(stage, options.workspace, functools.partial(make_run, options)):
                    show(line)


def _recipe_status(options: argparse.Namespace, argument: str) -> Iterator[str]:
    """The table of a recipe's stages."""
    workflow = make_workflow(options, argument)
    yield f"recipe {workflow.name}"
    known: dict[tuple[str, str], State] = {}
    for stage in STAGES.values():
        is_for_classifiers = stage.recipes == "classifiers" and any(recipe.has_gan for recipe in workflow.recipes)
        if stage.folder and not is_for_classifiers:
            state = workflow.state(stage, known)
            if not stage.on_demand or state.status != "missing" or state.reason:
                yield f"  {stage.name:<10}{state.status:<9}{state.reason}".rstrip()
