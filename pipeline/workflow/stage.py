"""What a stage declares, its inputs and its state."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pipeline.errors import StageError

T = TypeVar("T")


def load_function(name: str) -> Callable[..., Any]:
    """The function with a name such as "pipeline.stages.train:run"."""
    module, _, function = name.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return loaded


@dataclass(frozen=True)
class Stage:
    """The declaration of a stage."""

    name: str
    # Functions are given as "module:name", so that a table of stages imports none of them.
    # Computes the result in `context.output_dir`; returns what the manifest records under "numbers".
    run: str
    # The result's folder below the workspace; "" if the stage has none. {name} is that of the recipe, {title} that of
    # the comparison, {digest} that of the settings in `identity`.
    folder: str = ""
    identity: tuple[str, ...] = ()
    # Sections ("train") or single settings ("train.fit_all") of the recipe that `run` reads.
    settings: tuple[str, ...] = ()
    # Outputs (names or patterns) of earlier stages that are inputs.
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Outputs of on-demand stages (names or patterns) that are inputs if they are fresh.
    extra_inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    # Outputs that exist in some cases only.
    optional_outputs: tuple[str, ...] = ()
    # An output that must exist and may change after it was published.
    receipt: str | None = None
    # A function that returns the modules that `run` imports by a name in a recipe: the models, and what trains them.
    code: str = ""
    # Runs only if it is requested by name.
    on_demand: bool = False
    # If it is requested, the stages that its inputs are from run too if they are not fresh.
    ensures_inputs: bool = False
    # The recipes that it is for: those that train a classifier, a GAN, or both.
    recipes: Literal["classifiers", "gans", "all"] = "classifiers"
    # Refuses --recipe a,b.
    single_recipe: bool = False
    # Refuses --recipe FOLDER; other stages run for each of its recipes in turn.
    refuses_folders: bool = False
    # The recipe if --recipe is missing; "" if it depends on the device.
    default_recipe: str = ""
    # Computes on the device that --device selects.
    uses_device: bool = False
    # Runs separately for each recipe of a blend.
    per_recipe: bool = False
    # An interrupted run continues when the stage runs again with the same settings.
    resumes: bool = False
    # Publishes its result itself. Its manifest need not record settings, inputs and code; `stale_reason` replaces them.
    publishes_itself: bool = False
    # A function that raises UserError before anything runs if (recipes, device) cannot work.
    check: str = ""
    # A function of (stage, options, make_run) that runs instead of the engine, for a stage of several recipes.
    command: str = ""
    # A function of (stage, workspace, make_run) that returns additional lines of --status.
    status: str = ""
    # A function of (workflow, manifest) that returns an additional reason why a published result is stale, or "".
    stale_reason: str = ""


class State(NamedTuple):
    """The state of a stage's result."""

    status: str  # "fresh", "stale" or "missing"
    reason: str = ""

    @property
    def fresh(self) -> bool:
        return self.status == "fresh"

    def __str__(self) -> str:
        return self.status + (f" ({self.reason})" if self.reason else "")


class InputFile(NamedTuple):
    """A file that a stage reads."""

    path: Path
    sha256: str  # of an output of an earlier stage: as that stage's manifest records it
    stage: str = ""  # whose output it is
    recipe: str = ""  # of several recipes, the one whose result it is; "" if they share it

    @property
    def name(self) -> str:
        """The name among the inputs of a recipe: "prepare/folds.npy"."""
        return f"{self.stage}/{self.path.name}"

    @property
    def full_name(self) -> str:
        """The name in a manifest: for several recipes, "quick: prepare/folds.npy"."""
        return f"{self.recipe}: {self.name}" if self.recipe else self.name


class InputDict(dict[str, T]):
    """By "stage/file". Raises StageError for an input that the manifest of its stage does not list."""

    def __missing__(self, name: str) -> T:
        stage = name.split("/")[0]
        raise StageError(f"{name} is missing: run --stage {stage} with the same options and --force to make it again")
