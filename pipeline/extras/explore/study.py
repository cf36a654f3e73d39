"""All statistics of the data that `explore` shows."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.dataset.copies import find_copies
from pipeline.metrics import dataset_statistics, embedding
from pipeline.shapes import UInt8

SIMILAR_DIGITS = ((3, 8), (4, 9), (7, 9), (1, 7), (3, 5))  # the pairs of digits that networks confuse most
MAX_PAIRS = 5  # of similar images


class DatasetStudy:
    """Computes the statistics of the training images, and compares them with the test images.

    images: by table, "train" and "test".
    tsne_rows: number of rows, from the first one on; at most all.
    on_progress: called with the fraction that is done, up to 1.
    """

    def __init__(
        self,
        images: dict[str, UInt8[np.ndarray, "_ 28 28"]],
        labels: UInt8[np.ndarray, " n"],
        tsne_rows: int,
        seed: int,
        on_progress: Callable[[float], None],
    ) -> None:
        self.images, self.labels, train = images, labels, images["train"]
        self.digits = dataset_statistics.digit_statistics(train, labels)
        solver = "covariance_eigh" if len(train) > train[0].size else "full"
        pca, self.coordinates = embedding.fit_pca(embedding.flatten_pixels(train), solver)
        self.variance_ratios, self.components = pca.explained_variance_ratio_, pca.components_.reshape(-1, 28, 28)
        on_progress(0.1)
        self.tsne = embedding.tsne(self.coordinates[:tsne_rows], seed, lambda done: on_progress(0.1 + 0.7 * done))
        self.tsne_labels: UInt8[np.ndarray, " m"] = labels[:tsne_rows]
        self.neighbour_accuracy = embedding.neighbour_accuracy(self.tsne, self.tsne_labels)
        self.spread = embedding.digit_spread(self.tsne, self.tsne_labels)
        # By pairs of tables, pairs of row indices; near copies with their distance.
        self.copies = {
            ("train", "train"): find_copies(train),
            ("test", "test"): find_copies(images["test"]),
            ("train", "test"): find_copies(train, images["test"]),
        }
        self.near_copies = {
            ("train", "train"): dataset_statistics.nearest_pairs(train, None, MAX_PAIRS),
            ("test", "train"): dataset_statistics.nearest_pairs(images["test"], train, MAX_PAIRS),
        }
        self.similar = {
            digits: dataset_statistics.similar_pairs(self.coordinates, labels, digits, MAX_PAIRS)
            for digits in SIMILAR_DIGITS
        }
        on_progress(1.0)

    def numbers(self) -> dict[str, Any]:
        """The results as plain numbers; rows are counted from 1."""

        def finite(value: float) -> float | None:
            return float(value) if np.isfinite(value) else None

        rows_and_ink = zip(self.digits.rows, self.digits.ink, strict=True)
        ratios = self.variance_ratios
        return {
            "rows": len(self.labels),
            "test_rows": len(self.images["test"]),
            "by_digit": [
                {"digit": digit, "rows": int(rows), "ink": finite(ink)}
                for digit, (rows, ink) in enumerate(rows_and_ink)
            ],
            "variance_explained": {str(count): float(ratios[:count].sum()) for count in (2, 3, len(ratios))},
            "tsne": {
                "rows": len(self.tsne),
                "neighbour_accuracy": self.neighbour_accuracy,
                "spread": [finite(value) for value in self.spread],
            },
            "copies": {f"{first}-{second}": len(pairs) for (first, second), pairs in self.copies.items()},
        } | {
            f"nearest_{first}_{second}": [
                {first: i + 1, f"nearest_{second}": j + 1, "distance": distance} for i, j, distance in pairs
            ]
            for (first, second), pairs in self.near_copies.items()
        }
