"""The arrays of a training, and the part of them that the network of a fold is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shapes import Float16, UInt8


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
