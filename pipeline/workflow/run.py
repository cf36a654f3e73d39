"""The description of a run: what the command line asked for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.recipes import config
from pipeline.recipes.settings import Recipe
from pipeline.workflow import publishing, store
from pipeline.workflow.log import RunLog
from pipeline.workflow.stage import Stage
from pipeline.workflow.store import Manifest

LABEL_WIDTH = 11  # of the labels at the end of a run


@dataclass(frozen=True)
class Run:
    """What the command line asked for: workspace, recipe and options. It never changes."""

    stages: Mapping[str, Stage]
    workspace: Path
    recipe: Recipe
    assignments: tuple[str, ...] = ()  # the values of --set
    options: str = ""  # --workspace, --data and --device, to repeat in a command that a message names
    data: str = "auto"
    device: str = "cpu"
    requested_device: str = "auto"  # a Dask worker may have a device that this machine lacks
    tracker: str = "none"
    engine: str = "local"
    force: bool = False
    recomputed: set[Path] = field(default_factory=set)  # with `force`: cached folders that this run has made again
    images: tuple[Path, ...] = ()  # the files and folders that recognize reads
    log: RunLog = field(default_factory=RunLog)
    prefix: str = ""  # of messages

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def recipe_argument(self) -> str:
        """The value of --recipe that selects the recipe."""
        return self.recipe.file or self.recipe.name

    @property
    def arguments(self) -> str:
        """The options to repeat in a command that a message names."""
        changes = "".join(f" --set {shlex.quote(assignment)}" for assignment in self.assignments)
        return f" --recipe {shlex.quote(self.recipe_argument)}{self.options}{changes}"

    def say(self, message: str) -> None:
        """Write a message to the screen and to the log."""
        self.log.say(f"{self.prefix}{message}")

    def report(self, label: str, text: str) -> None:
        """Write a line of the block at the end of a run."""
        self.log.say(f"{label:<{LABEL_WIDTH}}{text}")

    def folder(self, stage: Stage) -> Path:
        """Where the stage's result is or will be, with links resolved: publishing renames the folder itself."""
        return store.resolve(self.workspace / self.place(stage))

    def place(self, stage: Stage) -> str:
        """The path of the stage's result below the workspace."""
        digest = config.digest(config.flatten(self.recipe, stage.identity)) if stage.identity else ""
        return stage.folder.format(name=self.name, digest=digest)

    def published_dir(self, name: str) -> Path:
        """Where the published result of a stage is."""
        return publishing.published_dir(self.folder(self.stages[name]))

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a stage's published result, or None."""
        return store.read_manifest(self.published_dir(name))[0]

    def settings(self, stage: Stage) -> dict[str, Any]:
        """The settings that a stage reads, by name."""
        return config.flatten(self.recipe, stage.settings)
