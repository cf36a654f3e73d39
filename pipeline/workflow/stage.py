"""What a stage declares, its inputs and its state."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

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
    # The result's folder below the workspace. {name} is that of the run, {digest} that of the settings in `identity`.
    folder: str
    identity: tuple[str, ...] = ()
    # Sections ("train") or single settings ("train.fit_all") of the recipe that `run` reads.
    settings: tuple[str, ...] = ()
    # Outputs (names or patterns) of earlier stages that are inputs.
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
    # The recipe if --recipe is missing; "" if it depends on the device.
    default_recipe: str = ""
    # Computes on the device that --device selects.
    uses_device: bool = False
    # An interrupted run continues when the stage runs again with the same settings.
    resumes: bool = False
    # Publishes its result itself, since the user's files are part of it: `stale_reason` replaces the engine's checks of
    # settings, inputs and code.
    publishes_itself: bool = False
    # A function that raises UserError before anything runs if (recipe, device) cannot work.
    check: str = ""
    # Of a stage that reads the results of several recipes: a function of (stage, names, runs, download) that returns
    # their `JointWorkflow`.
    join: str = ""
    # A function of (run, manifest) that returns an additional reason why a published result is stale, or "".
    stale_reason: str = ""

    @property
    def depends_on_recipe(self) -> bool:
        """Whether each recipe has a result of its own."""
        return "{" in self.folder


@dataclass(frozen=True)
class Command:
    """The declaration of what does something once, on demand, and caches nothing."""

    name: str
    run: str  # the function of a `Workflow`, as "module:name"
    default_recipe: str = ""
    uses_device: bool = False
    can_blend: bool = False  # also for --recipe a,b: the run is then that of their mean
    on_demand: ClassVar[bool] = True
    recipes: ClassVar[str] = "classifiers"


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
    sha256: str  # as the manifest of the stage records it
    stage: str  # whose output it is

    @property
    def name(self) -> str:
        """The name among the inputs of a recipe: "prepare/folds.npy"."""
        return f"{self.stage}/{self.path.name}"


class InputDict(dict[str, T]):
    """By "stage/file". Raises StageError for an input that the manifest of its stage does not list."""

    def __missing__(self, name: str) -> T:
        stage = name.split("/")[0]
        raise StageError(f"{name} is missing: run --stage {stage} with the same options and --force to make it again")
