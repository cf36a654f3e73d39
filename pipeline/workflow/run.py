"""The description of a run: what the command line asked for."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.recipes import config
from pipeline.recipes.settings import Recipe
from pipeline.workflow import publishing, store
from pipeline.workflow.log import RunLog
from pipeline.workflow.stage import Stage
from pipeline.workflow.store import Manifest


@dataclass(frozen=True)
class Run:
    """What the command line asked for: workspace, recipes and options. It never changes."""

    stages: Mapping[str, Stage]
    workspace: Path
    recipes: tuple[Recipe, ...]
    recipe_argument: str = ""  # the value of --recipe, or the default recipe
    assignments: tuple[str, ...] = ()  # the values of --set
    options: str = ""  # the other options to repeat in a command that a message names
    title: str = ""  # of a comparison
    data: str = "auto"
    device: str = "cpu"
    requested_device: str = "auto"  # a Dask worker may have a device that this machine lacks
    tracker: str = "none"
    engine: str = "local"
    force: bool = False
    recomputed: set[Path] = field(default_factory=set)  # with `force`: cached folders that this run has made again
    images: tuple[Path, ...] = ()  # the files and folders that recognize reads
    log: RunLog = field(default_factory=RunLog)

    @property
    def name(self) -> str:
        return "+".join(recipe.name for recipe in self.recipes)

    @property
    def recipe(self) -> Recipe:
        (recipe,) = self.recipes
        return recipe

    @property
    def arguments(self) -> str:
        """The options to repeat in a command that a message names."""
        return f" --recipe {shlex.quote(self.recipe_argument)}{self.options}"

    def say(self, message: str) -> None:
        """Write a message to the screen and to the log."""
        self.log.say(message)

    def for_recipe(self, recipe: Recipe) -> Self:
        """The same run for one of its recipes."""
        if len(self.recipes) == 1:
            return self
        return dataclasses.replace(self, recipes=(recipe,), recipe_argument=recipe.file or recipe.name)

    def folder(self, stage: Stage) -> Path:
        """Where the stage's result is or will be, with links resolved: publishing renames the folder itself."""
        assert stage.folder, f"{stage.name} has no folder"
        digest = config.digest(config.flatten(self.recipe, stage.identity)) if stage.identity else ""
        return store.resolve(self.workspace / stage.folder.format(name=self.name, title=self.title, digest=digest))

    def published_dir(self, name: str) -> Path:
        """Where the published result of a stage is."""
        return publishing.published_dir(self.folder(self.stages[name]))

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a stage's published result, or None."""
        return store.read_manifest(self.published_dir(name))[0]

    def settings(self, stage: Stage) -> dict[str, Any]:
        """The settings that a stage reads, by name; for several recipes, a dict of these for each."""
        settings = {recipe.name: config.flatten(recipe, stage.settings) for recipe in self.recipes}
        return settings if len(self.recipes) > 1 else settings[self.recipe.name]
