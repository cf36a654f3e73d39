"""--list and --status: the recipes, and which results are fresh, stale or missing."""

import argparse
from collections.abc import Iterator, Sequence

from pipeline.cli import cleanup
from pipeline.cli.workflows import (
    BLEND,
    JOINT,
    STAGES,
    expand,
    is_blend,
    join_workflows,
    list_recipes,
    make_workflow,
    split,
)
from pipeline.errors import PipelineError, one_line, show
from pipeline.recipes import config
from pipeline.workflow import store
from pipeline.workflow.stage import Stage, State


def show_recipes() -> None:
    """Print a line for each built-in recipe."""
    recipes = [config.load_recipe(name) for name in config.recipe_names()]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        show(f"{recipe.name:<{width}}  {recipe.about}")


def show_status(options: argparse.Namespace) -> None:
    """Print a table for the requested recipe, or for every recipe that has runs; and a line for each joint result."""
    with_runs = [] if options.recipe else cleanup.recipes_with_runs(options.workspace)
    requested = list_recipes(options) if options.recipe else with_runs
    for recipe in requested or ["quick"]:
        try:
            lines = list(_recipe_status(options, recipe))
        except (PipelineError, OSError, ValueError) as error:
            if options.recipe:
                raise
            lines = [f"a recipe that has runs cannot be read: {one_line(error)}"]
        if not requested:
            lines[0] += " (no recipe has runs yet)"
        for line in lines:
            show(line)
    if BLEND and is_blend(options):
        show(_joint_status(options, BLEND, split(options.recipe), options.set))
    if not options.recipe:
        for stage in JOINT.values():
            for title, context in cleanup.joint_runs(options.workspace, stage):
                try:
                    show(_joint_status(options, stage, context.get("recipes", ()), context.get("assignments", ())))
                except (PipelineError, OSError, ValueError) as error:
                    show(f"{stage.name} {title}: cannot be read ({one_line(error)})")


def _recipe_status(options: argparse.Namespace, recipe: str | None) -> Iterator[str]:
    """The table of a recipe's stages."""
    workflow = make_workflow(options, recipe)
    yield f"recipe {workflow.name}"
    known: dict[tuple[str, str], State] = {}
    for stage in STAGES.values():
        if stage.recipes != "classifiers" or not workflow.recipe.has_gan:
            state = workflow.state(stage, known)
            if not stage.on_demand or state.status != "missing" or state.reason:
                yield f"  {stage.name:<10}{state.status:<9}{state.reason}".rstrip()


def _joint_status(options: argparse.Namespace, stage: Stage, names: Sequence[str], assignments: Sequence[str]) -> str:
    """The line of a comparison or a blend. Raises ValueError if its recipes are not known."""
    if not names:
        raise ValueError(f"{store.CONTEXT} is damaged")
    runs = [make_workflow(options, recipe, assignments) for recipe in expand(names)]
    joint = join_workflows(stage, names, runs, download=False)
    return f"{stage.name} {joint.name}: {joint.state(stage)}"
