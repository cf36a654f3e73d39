"""Specs: the complete description of each network that a recipe trains."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline import config
from pipeline.settings import Affine, Gan, Model, Recipe, Train
from pipeline.source_code import module_hashes
from pipeline.store import FORMAT

# The modules whose code determines every network, its history and its figures, and those of each model. A test compares
# all such lists with the imports.
TRAINING_CODE = (
    "dataset.affine",
    "dataset.training_arrays",
    "dataset.views",
    "nn.averaging",
    "nn.classifier",
    "nn.cuda_graph",
    "nn.epochs",
    "nn.inference",
    "nn.initialization",
    "nn.models.__init__",
    "nn.models.pixels",
    "nn.optimizers",
    "nn.precision",
    "nn.training_loop",
)
_INFERENCE_CODE = (
    "dataset.training_arrays",
    "dataset.views",
    "nn.inference",
    "nn.models.__init__",
    "nn.models.pixels",
    "nn.precision",
)
# The modules whose code determines the weights of a GAN.
GAN_CODE = (*TRAINING_CODE, "nn.gan_training", "nn.generators")
# That of a network that can start from ImageNet's weights, in addition.
_TRANSFER_CODE = (
    "dataset.training_arrays",
    "features",
    "nn.extraction",
    "nn.imagenet_weights",
    "nn.initialization",
    "nn.models.dropout",
    "nn.models.transfer",
    "nn.saved_tensors",
)
MODEL_CODE = {
    "dropout_cnn": ("nn.models.dropout_cnn", "nn.models.dropout"),
    "small_cnn": ("nn.models.small_cnn", "nn.models.blocks", "nn.models.dropout"),
    "medium_cnn": ("nn.models.medium_cnn", "nn.models.blocks", "nn.models.dropout"),
    "layers": ("nn.models.layers", "nn.models.dropout"),
    "vgg16": ("nn.models.vgg16", *_TRANSFER_CODE),
    "alexnet": ("nn.models.alexnet", *_TRANSFER_CODE),
}


@dataclass(frozen=True)
class NetworkSpec:
    """The complete description of one training. Networks with equal specs have equal weights."""

    model: Model
    train: Train  # with the network's seed and the resolved precision
    affine: Affine
    fold: int | None  # the fold that is held out
    threads: int  # on a CPU, the weights depend on it; 0 on other devices
    data: tuple[tuple[str, str], ...]  # SHA-256 of the training data and of the split, by file

    @property
    def name(self) -> str:
        view = "" if self.model.view == "plain" else f"-{self.model.view}"
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.model.name}{view}-seed{self.train.seed}{fold}"

    @property
    def seed(self) -> int:
        return self.train.seed

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
            "code": module_hashes((*TRAINING_CODE, *MODEL_CODE[self.model.name])),
        }


@dataclass(frozen=True)
class GanSpec:
    """The complete description of the training of a conditional GAN, whose generator is kept."""

    gan: Gan  # with the resolved precision
    threads: int
    data: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return f"gan-{self.gan.architecture}-seed{self.gan.seed}"

    @property
    def seed(self) -> int:
        return self.gan.seed

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{config.digest({**self.key()['settings'], 'data': self.data})}"

    def key(self) -> dict[str, Any]:
        """What the manifest of the training records."""
        return {
            "format": FORMAT,
            "stage": "network",
            "settings": {**config.flatten(self, ("gan",)), "threads": self.threads},
            "inputs": dict(self.data),
            "code": module_hashes(GAN_CODE),
        }


Spec = NetworkSpec | GanSpec


def models(recipe: Recipe) -> list[Model]:
    """The models of a recipe, each on each view."""
    names, views = recipe.ensemble.models or (recipe.model.name,), recipe.ensemble.views or (recipe.model.view,)
    return [recipe.model.replace(name=name, view=view) for name, view in product(names, views)]


def variants(recipe: Recipe) -> list[tuple[Model, int, int | None]]:
    """The networks of a recipe as (model, seed, fold): each model on each view with each seed and fold."""
    seeds, folds = range(recipe.train.seed, recipe.train.seed + recipe.ensemble.seeds), recipe.split.folds
    return list(product(models(recipe), seeds, range(folds) if folds else (None,)))


def training_code(recipe: Recipe) -> tuple[str, ...]:
    """The modules whose code determines which networks a recipe has, and each of them.

    An edit of the first two makes a stage stale, but no network: those with the same specs are used again.
    """
    return ("networks", "specs", *TRAINING_CODE, *_model_code(recipe))


def inference_code(recipe: Recipe) -> tuple[str, ...]:
    """The modules whose code determines the predictions of a recipe's networks, given their weights."""
    return (*_INFERENCE_CODE, *_model_code(recipe))


def _model_code(recipe: Recipe) -> tuple[str, ...]:
    return tuple(sorted({module for model in models(recipe) for module in MODEL_CODE[model.name]}))
