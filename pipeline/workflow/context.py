"""What the function of a stage gets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.recipes.settings import Recipe
from pipeline.workflow import store
from pipeline.workflow.run import Run
from pipeline.workflow.stage import InputDict, Stage, State
from pipeline.workflow.store import Manifest


class InputChanged(PipelineError):
    """An input changed while a stage ran, so its result was not published."""


@dataclass
class StageInputs:
    """What a stage gets for one recipe."""

    recipe: Recipe
    settings: Recipe  # only with the sections that the stage declares
    files: InputDict[Path]
    hashes: InputDict[str]  # SHA-256 of the same files
    manifests: dict[str, Manifest]  # of the stages that the inputs are from


@dataclass
class StageContext:
    """What a stage's `run` gets: where to write, and the settings and inputs of each recipe."""

    run: Run
    stage: Stage
    output_dir: Path
    published_dir: Path  # where the result will be; unlike `Run.published_dir`, never X.previous
    key: dict[str, Any]  # stage, settings, inputs, code
    parts: list[StageInputs]  # one for each recipe; several only for a blend or a comparison
    environment: dict[str, Any]  # recorded in context.json
    states: dict[str, State]  # of the stages whose outputs are inputs only if they are fresh
    network_folders: set[str] = field(default_factory=set)  # of the networks that the stage uses

    @property
    def only(self) -> StageInputs:
        """The inputs of a stage that runs for one recipe."""
        (part,) = self.parts
        return part

    @property
    def files(self) -> InputDict[Path]:
        return self.only.files

    @property
    def settings(self) -> Recipe:
        return self.only.settings

    def say(self, message: str) -> None:
        """Show a message that begins with the stage's name."""
        self.run.say(f"{self.stage.name}: {message}")

    @contextlib.contextmanager
    def show_progress(self, description: str) -> Iterator[Callable[[float], None]]:
        """Show a progress bar; yields a function to call with the fraction that is done, up to 1."""
        from tqdm import tqdm  # not at the top: --status must start quickly

        with tqdm(total=100, desc=description, unit="%", disable=None) as bar:
            yield lambda fraction: bar.update(int(100 * fraction) - bar.n)

    def check_inputs(self) -> None:
        """Hash the inputs again. Raises InputChanged if one differs from what it was at the start."""
        paths = {path: part.hashes[name] for part in self.parts for name, path in part.files.items()}
        for path, digest in paths.items():
            if store.sha256(path) != digest:
                raise InputChanged(f"{path} changed while {self.stage.name} ran; nothing was published, run it again")
