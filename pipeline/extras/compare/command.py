"""compare: the recipes of a comparison, and its command and its lines of --status."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.dataset import files
from pipeline.errors import PipelineError, StageError, display_path
from pipeline.recipes import config
from pipeline.recipes.rules import find_unused
from pipeline.recipes.settings import MAX_NETWORKS, Recipe
from pipeline.training import imagenet
from pipeline.workflow import schemas, store
from pipeline.workflow.checks import check_recipe_files, check_recipes
from pipeline.workflow.engine import Workflow
from pipeline.workflow.log import start_run
from pipeline.workflow.stage import Stage, load_function

MAX_TITLE = 80  # characters of a comparison's name


def load_recipes(argument: str, assignments: Sequence[str]) -> list[Recipe]:
    """The recipes of a comparison in order. Raises StageError if one of them cannot be compared."""
    recipes = [config.load_recipe(name, assignments) for name in config.expand_recipes(argument)]
    names = [recipe.name for recipe in recipes]
    for recipe in recipes:
        if recipe.train.record:
            raise StageError(f"--stage compare: {recipe.name}: omit train.record, which is for --stage inspect")
        if names.count(recipe.name) > 1:
            raise StageError(f"--stage compare: two recipes have the name {recipe.name}: rename the file of one")
    if (n_networks := sum(recipe.n_networks * recipe.compare.seeds for recipe in recipes)) > MAX_NETWORKS:
        raise StageError(f"--stage compare: {n_networks:,} networks, more than {MAX_NETWORKS:,}: set compare.seeds")
    return recipes


def _adapt_to_data(workflow: Workflow) -> tuple[Recipe, ...]:
    """The recipes as the comparison trains them: on all rows if test rows have labels and the last epoch is kept."""
    manifest = workflow.manifest("download")
    has_test_labels = files.TEST_LABELS in (manifest or {"outputs": ()})["outputs"]
    return tuple(
        recipe.replace(
            train=recipe.train.replace(
                fit_all=has_test_labels and recipe.train.checkpoint_selection == "last" and not recipe.split.folds
            )
        )
        for recipe in workflow.recipes
    )


def _make_title(argument: str, assignments: Sequence[str]) -> str:
    """The folder name of a comparison. It does not depend on the number of seeds."""
    assignments = [assignment for assignment in assignments if not assignment.startswith("compare.")]
    names = config.split_argument(argument)
    title = "+".join(Path(name).stem if name.endswith(".toml") else name.replace("/", "-") for name in names)
    if not assignments and len(title) <= MAX_TITLE:
        return title
    text = "\n".join([argument, *sorted(assignments)])
    return f"{title[:MAX_TITLE]}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"


def _make_comparison(
    stage: Stage,
    make_run: Callable[..., Workflow],
    recipes: Sequence[Recipe],
    argument: str,
    assignments: Sequence[str],
) -> Workflow:
    """The run of a comparison of recipes."""
    workflow = make_run([*stage.inputs, stage.name], recipes, argument, assignments)
    return replace(workflow, recipes=_adapt_to_data(workflow), title=_make_title(argument, assignments))


def run(stage: Stage, options: argparse.Namespace, make_run: Callable[..., Workflow]) -> None:
    """Train each recipe with each seed where that is missing, and write the table of the comparison.

    make_run: makes a run from (names of stages, recipes, value of --recipe, values of --set).
    """
    from pipeline.machine import devices  # not at the top: it imports torch

    assignments = [*options.set]
    assignments += [f"compare.seeds={options.seeds}"] * (options.seeds is not None)
    assignments += ["compare.ensemble=true"] * options.ensemble
    argument = ",".join(config.split_argument(options.recipe))
    recipes = load_recipes(argument, assignments)
    check_recipes([stage], recipes)
    device = devices.choose_device(options.device)
    load_function(stage.check)(recipes, device)
    with start_run(options.workspace, options.stage, options.wait) as log:
        left_out = imagenet.find_unavailable(recipes, config.split_argument(argument), options.workspace)
        recipes = [recipe for recipe in recipes if recipe.name not in left_out]
        if not recipes:
            raise StageError(f"--recipe {argument}: {next(iter(left_out.values()))}")
        first = make_run(["download"], recipes[:1], recipes[0].file or recipes[0].name, options.set)
        first = replace(first, log=log)
        for name, reason in left_out.items():
            first.say(f"compare: {name} is left out: {reason}")
        first.say(f"compare: {', '.join(recipe.name for recipe in recipes)}")
        for assignment in assignments:
            if assignment.startswith("predict."):
                first.say(f"compare: {assignment} has no effect: networks are compared without shifted copies")
        for recipe in recipes:
            for note in find_unused(recipe):
                first.say(f"note: {recipe.name}: {note}")
        first.say(devices.describe_choice(device, options.device))
        first.restore()
        first.ensure_fresh(first.stages["download"])
        # Not before: whether the recipes train on all rows depends on the data.
        workflow = _make_comparison(stage, make_run, recipes, argument, assignments)
        workflow = replace(workflow, log=log, device=device)
        check_recipe_files(workflow, [workflow.folder(stage)])
        workflow.restore()
        for name in stage.inputs:
            if name != "download":
                workflow.ensure_fresh(workflow.stages[name])
        workflow.ensure_fresh(stage, requested=True)
        folder = workflow.published_dir("compare")
        _, table, page = (display_path(folder / name) for name in stage.outputs)
        workflow.say(f"table: {table}; page: {page}")


def status(stage: Stage, workspace: Path, make_run: Callable[..., Workflow]) -> Iterator[str]:
    """A line for each comparison in the workspace: fresh, stale (and why) or interrupted."""
    contexts = {
        path.parent.name.removesuffix(".partial"): path
        for path in sorted((workspace / "data/compare").glob(f"*/{store.CONTEXT}"), reverse=True)
    }
    for title, path in sorted(contexts.items()):
        context = store.read_json(path, schemas.Context)
        if context is None or not context.get("recipe"):
            yield f"comparison {title}: {store.CONTEXT} is damaged"
            continue
        assignments = context.get("assignments", ())
        try:
            recipes = load_recipes(context["recipe"], assignments)
            left_out = imagenet.find_unavailable(recipes, (), workspace, download=False)
            recipes = [recipe for recipe in recipes if recipe.name not in left_out] or recipes
            workflow = _make_comparison(stage, make_run, recipes, context["recipe"], assignments)
            state = workflow.state(stage)
            yield f"comparison {title}: {state}"
        except (PipelineError, OSError, ValueError) as error:
            yield f"comparison {title}: cannot be read ({error})"
