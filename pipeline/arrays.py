"""The arrays of a recipe, from the outputs of prepare and augment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.declarations import StageInputs
from pipeline.settings import Recipe

if TYPE_CHECKING:
    from pipeline.dataset.training_arrays import TrainingArrays
    from pipeline.nn.held_out import TrainingRows


def load_arrays(recipe: Recipe, inputs: StageInputs) -> TrainingArrays:
    """The training arrays of a recipe, mapped from the outputs of prepare and augment where possible."""
    import numpy as np

    from pipeline.dataset.training_arrays import TrainingArrays

    files = inputs.files
    arrays = TrainingArrays(np.load(files["augment/images.npy"], mmap_mode="c"), np.load(files["augment/labels.npy"]))
    if recipe.train.fit_all:
        return arrays
    if recipe.split.folds:
        return replace(arrays, folds=np.load(files["prepare/folds.npy"]))
    rows = np.load(files["prepare/validation_rows.npy"])
    images = np.load(files["prepare/train_images.npy"], mmap_mode="r")[rows]
    return replace(arrays, validation_images=images, validation_labels=np.load(files["prepare/train_labels.npy"])[rows])


def load_training_rows(part: StageInputs) -> TrainingRows:
    """The rows of train.csv and which of them a recipe holds out, from the outputs of prepare."""
    import numpy as np

    from pipeline.nn.held_out import TrainingRows

    files = part.files
    return TrainingRows(
        np.load(files["prepare/train_images.npy"], mmap_mode="r"),
        np.load(files["prepare/train_labels.npy"]),
        np.load(files["prepare/validation_rows.npy"]),
        np.load(files["prepare/folds.npy"]) if "prepare/folds.npy" in files else None,
    )
