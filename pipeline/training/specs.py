"""Specs: the complete description of each network that a recipe trains."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Protocol

from pipeline.recipes import config
from pipeline.recipes.settings import Affine, Model, Recipe, Train
from pipeline.workflow import code, schemas
from pipeline.workflow.store import FORMAT

# The module that trains a classifier; the code of its result is this module, that of the model, and all their imports.
CLASSIFIER = "pipeline.training.classifier"
_FEATURES = "pipeline.training.features"  # of a frozen extractor


class Spec(Protocol):
    """The complete description of a training, of any kind: with an equal spec, the result is equal."""

    @property
    def fit(self) -> str:
        """The function that trains, as "module:name": it takes a Session, the spec and the arrays."""

    @property
    def section(self) -> str:
        """The section of the recipe with `batch_size` and `precision`."""

    @property
    def threads(self) -> int:
        """The number of CPU threads; 0 on other devices."""

    @property
    def is_recorded(self) -> bool:
        """Whether weight histograms and gradients of each epoch are kept."""

    @property
    def name(self) -> str:
        """The name in messages."""

    @property
    def seed(self) -> int:
        """The seed of the training."""

    @property
    def epochs(self) -> int:
        """The number of epochs."""

    @property
    def folder_name(self) -> str:
        """The name of the folder with the result, which ends with a digest of the spec."""

    def key(self) -> dict[str, Any]:
        """What the manifest records."""

    def check_history(self, history: list[dict[str, float]]) -> None:
        """Raise ValueError for a history that is not of this training."""


@dataclass(frozen=True)
class NetworkSpec:
    """The complete description of one training. Networks with equal specs have equal weights."""

    model: Model
    train: Train  # with the network's seed and the resolved precision
    affine: Affine
    fold: int | None  # the fold that is held out
    threads: int  # on a CPU, the weights depend on it; 0 on other devices
    data: tuple[tuple[str, str], ...]  # SHA-256 of the training data and of the split, by file
    fit: ClassVar[str] = f"{CLASSIFIER}:fit_network"
    section: ClassVar[str] = "train"

    @property
    def is_recorded(self) -> bool:
        return self.train.record

    @property
    def name(self) -> str:
        view = "" if self.model.view == "plain" else f"-{self.model.view}"
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.model.name}{view}-seed{self.train.seed}{fold}"

    @property
    def seed(self) -> int:
        return self.train.seed

    @property
    def epochs(self) -> int:
        return self.train.epochs

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{config.digest({**self.key()['settings'], 'data': self.data})}"

    def key(self) -> dict[str, Any]:
        """What the network's manifest records."""
        settings = config.flatten(self, ("affine", "model", "train"))
        return {
            "format": FORMAT,
            "stage": "network",
            "settings": {**settings, "fold": self.fold, "threads": self.threads},
            "inputs": dict(self.data),
            "code": code.digest(_network_code(self.model)),
        }

    def check_history(self, history: list[dict[str, float]]) -> None:
        schemas.check(history, list[schemas.Epoch])
        check_epochs(history, self.train.epochs)
        if not self.train.fit_all:
            is_best = self.train.checkpoint_selection == "best"
            schemas.check(history if is_best else [history[0], history[-1]], list[schemas.ValidatedEpoch])


def check_epochs(history: list[dict[str, float]], n_epochs: int) -> None:
    """Raise ValueError unless the rows are those of the epochs from 1 to `n_epochs`."""
    if [row["epoch"] for row in history] != list(range(1, n_epochs + 1)):
        raise ValueError("other epochs than those of the training")


def variants(recipe: Recipe) -> list[tuple[Model, int, int | None]]:
    """The networks of a recipe as (model, seed, fold): each model on each view with each seed and fold."""
    seeds, folds = range(recipe.train.seed, recipe.train.seed + recipe.ensemble.seeds), recipe.split.folds
    return list(product(recipe.models, seeds, range(folds) if folds else (None,)))


def training_code(recipe: Recipe) -> tuple[str, ...]:
    """The modules whose code, with all that they import, determines the networks of a recipe."""
    return tuple(sorted({name for model in recipe.models for name in _network_code(model)}))


def inference_code(recipe: Recipe) -> tuple[str, ...]:
    """The modules of a recipe's models."""
    return tuple(sorted({_model_code(model) for model in recipe.models}))


def _network_code(model: Model) -> tuple[str, ...]:
    return (CLASSIFIER, _model_code(model), *([_FEATURES] if model.has_frozen_extractor else []))


def _model_code(model: Model) -> str:
    return f"pipeline.nn.models.{model.name}"
