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
from pipeline.workflow.stage import InputDict, Stage
from pipeline.workflow.store import Manifest


class InputChanged(PipelineError):
    """An input changed while a stage ran, so its result was not published."""


@dataclass
class StageContext:
    """What a stage's `run` gets: the recipe, the inputs, and where to write."""

    run: Run
    stage: Stage
    recipe: Recipe
    files: InputDict[Path]
    hashes: InputDict[str]  # SHA-256 of the same files
    manifests: dict[str, Manifest]  # of the stages that the inputs are from
    output_dir: Path
    published_dir: Path  # where the result will be; unlike `Run.published_dir`, never X.previous
    key: dict[str, Any]  # stage, settings, inputs, code
    environment: dict[str, Any]  # recorded in context.json
    # Of a comparison or a blend: the same with the inputs of each recipe; `recipe` and `files` are those of the first.
    members: list[StageContext] = field(default_factory=list)
    network_folders: set[str] = field(default_factory=set)  # of the networks that the stage uses

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
        contexts = self.members or [self]
        paths = {path: each.hashes[name] for each in contexts for name, path in each.files.items()}
        for path, digest in paths.items():
            if store.sha256(path) != digest:
                raise InputChanged(f"{path} changed while {self.stage.name} ran; nothing was published, run it again")
