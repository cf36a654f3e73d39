"""Refusals before anything runs: recipes that a stage is not for, and files of equal name."""

import os
import shlex
from pathlib import Path

from pipeline.errors import StageError
from pipeline.recipes.settings import Recipe
from pipeline.workflow import publishing, schemas, store
from pipeline.workflow.engine import Workflow
from pipeline.workflow.stage import Command, Stage


def check_recipe(stage: Stage | Command, recipe: Recipe) -> None:
    """Raise StageError for a recipe that a stage is not for."""
    if stage.recipes == "classifiers" and recipe.has_gan:
        argument = shlex.quote(recipe.file or recipe.name)
        raise StageError(f"{recipe.name} trains a GAN, not a classifier: run --stage generate --recipe {argument}")
    if stage.recipes == "gans" and not recipe.has_gan:
        raise StageError(f"{recipe.name} has no GAN (gan.architecture is none): choose a recipe such as gan/better")


def check_recipe_file(workflow: Workflow, folder: Path) -> None:
    """Raise StageError if a folder, which has the name of a recipe, has the results of another file of this name.

    A file that no longer exists was moved, probably with its workspace: it is not another one.
    """
    file = workflow.recipe.file
    for place in (publishing.published_dir(folder), publishing.staging_dir(folder)):
        context = store.read_json(place / store.CONTEXT, schemas.Context) or {}
        for other in (context.get("recipe", ""), *context.get("recipes", ())):
            is_other = file and Path(other).name == Path(file).name and os.path.isfile(other)
            if is_other and store.sha256(other) != store.sha256(file) and not workflow.force:
                raise StageError(
                    f"{file}: {folder} has the results of {other}, which has the same name: rename one of the files, "
                    "or use --force to replace these results"
                )
