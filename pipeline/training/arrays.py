"""The arrays of a training, and the part of them that the network of a fold is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.recipes.settings import Recipe
from pipeline.shapes import Float16, Int64, UInt8
from pipeline.workflow import store


@dataclass(frozen=True)
class TrainingArrays:
    """The arrays of a training: the offline variants one after another, the originals first.

    With folds, `images` holds all rows, and `split` selects those of a network. Of a network with a frozen extractor,
    the images are replaced by its features.
    """

    images: UInt8[np.ndarray, "m 28 28"] | Float16[np.ndarray, "m ..."]
    labels: UInt8[np.ndarray, " m"]
    validation_images: UInt8[np.ndarray, "n 28 28"] | Float16[np.ndarray, "n ..."] | None = None
    validation_labels: UInt8[np.ndarray, " n"] | None = None
    folds: UInt8[np.ndarray, " rows"] | None = None
    # If given, the accuracy on them is measured when an epoch is validated.
    test_images: UInt8[np.ndarray, "t 28 28"] | Float16[np.ndarray, "t ..."] | None = None
    test_labels: UInt8[np.ndarray, " t"] | None = None

    def by_name(self) -> dict[str, NDArray[Any]]:
        """The arrays that are not None."""
        return {name: array for name, array in vars(self).items() if array is not None}

    def split(self, fold: int | None) -> TrainingArrays:
        """The arrays for the network that does not see `fold`."""
        if fold is None or self.folds is None:
            return self
        held_out = self.folds == fold
        kept = np.tile(~held_out, len(self.labels) // len(held_out))
        originals = slice(len(held_out))
        return TrainingArrays(
            self.images[kept],
            self.labels[kept],
            self.images[originals][held_out],
            self.labels[originals][held_out],
            test_images=self.test_images,
            test_labels=self.test_labels,
        )


def load_arrays(recipe: Recipe, files: Mapping[str, Path]) -> TrainingArrays:
    """The training arrays of a recipe, mapped from the outputs of prepare and augment where possible."""
    arrays = TrainingArrays(*read_digits(files, "augment/"))
    if recipe.train.fit_all:
        return arrays
    if recipe.split.folds:
        path = files["prepare/folds.npy"]
        folds = store.read_array(path, "uint8", (None,), below=recipe.split.folds)
        if not len(folds) or len(arrays.labels) % len(folds):
            raise store.damaged(path, f"{len(folds)} rows")
        return replace(arrays, folds=folds)
    images, labels = read_digits(files)
    rows = read_rows(files, len(labels))
    return replace(arrays, validation_images=images[rows], validation_labels=labels[rows])


def read_images(files: Mapping[str, Path], name: str) -> UInt8[np.ndarray, "n 28 28"]:
    """The images of an input, such as "prepare/test_images.npy", mapped from the file. Raises StageError."""
    return store.read_array(files[name], "uint8", (None, 28, 28), "c")


def read_digits(
    files: Mapping[str, Path], prefix: str = "prepare/train_"
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """The images, mapped from their file, and labels of train.csv, or with "augment/" of its variants.

    Raises StageError.
    """
    images = read_images(files, f"{prefix}images.npy")
    return images, store.read_array(files[f"{prefix}labels.npy"], "uint8", (len(images),), below=10)


def read_rows(files: Mapping[str, Path], n_rows: int, name: str = "validation_rows.npy") -> Int64[np.ndarray, " n"]:
    """The numbers of the validation rows, or of other rows of train.csv, which has `n_rows`. Raises StageError."""
    return store.read_array(files[f"prepare/{name}"], "int64", (None,), below=n_rows)
