"""The specs of the networks that a recipe trains on this machine."""

from __future__ import annotations

import torch

from pipeline.errors import StageError
from pipeline.recipes.settings import TRANSFER_MODELS, Model, Recipe
from pipeline.training import imagenet
from pipeline.training.pool import Pool
from pipeline.training.specs import NetworkSpec, variants
from pipeline.training.task import resolve_precision
from pipeline.workflow.context import StageContext


def network_specs(
    recipe: Recipe, inputs: StageContext, pool: Pool, repetition: int = 0, parallel: bool = False
) -> list[NetworkSpec]:
    """The specs of a recipe's networks.

    recipe: its sections affine, model, ensemble, split and train are used.
    inputs: the outputs of prepare and augment, and ImageNet's weights, from which the spec records hashes.
    repetition: number of the repetition in a comparison; each has seeds of its own.
    parallel: whether networks of other lists are trained at the same time.
    """
    names = ["augment/images.npy", "augment/labels.npy"]
    if not recipe.train.fit_all:
        # The history and the selected epoch depend on the validation rows, which are not among the augmented images.
        split = ("validation_rows.npy", "train_images.npy", "train_labels.npy")
        names += ["prepare/folds.npy"] if recipe.split.folds else [f"prepare/{file}" for file in split]
    planned = variants(recipe)

    def data(model: Model) -> tuple[tuple[str, str], ...]:
        weights = [imagenet.input_name(model)] if imagenet.input_name(model) in inputs.hashes else []
        return tuple((name, inputs.hashes[name]) for name in (*names, *weights))

    device = pool.worker_device()
    several = parallel or len(planned) > 1
    threads = recipe.ensemble.threads or (1 if several else torch.get_num_threads())
    if device not in ("cpu", "auto"):
        threads = 0
    train = recipe.train.replace(precision=pool.call(resolve_precision, recipe.train.precision, device, several))
    for model, _, _ in planned:
        if device == "cuda" and train.deterministic and model.name in TRANSFER_MODELS and model.frozen == "nothing":
            raise StageError(
                f"train.deterministic: the pooling layer of {model.name} has no reproducible gradient on CUDA; set "
                "model.frozen, or omit train.deterministic"
            )
    return [
        NetworkSpec(
            model,
            train.replace(seed=seed + repetition * recipe.ensemble.seeds),
            recipe.affine,
            fold,
            threads,
            data(model),
        )
        for model, seed, fold in planned
    ]
