"""Refusals before anything runs: recipes that a stage is not for, and files of equal name."""

import itertools
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import StageError
from pipeline.recipes import config
from pipeline.recipes.settings import Recipe
from pipeline.workflow import publishing, schemas, store
from pipeline.workflow.engine import Workflow
from pipeline.workflow.stage import Stage


def check_recipes(stages: Sequence[Stage], recipes: Sequence[Recipe]) -> None:
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


def check_recipe_files(workflow: Workflow, folders: Iterable[Path]) -> None:
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
