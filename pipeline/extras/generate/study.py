"""All measurements of generated digits that `generate` shows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.extras.generate.quality import Digits, compare_digits
from pipeline.metrics import dataset_statistics, embedding
from pipeline.nn.inference import last_layer_inputs, predict_probabilities
from pipeline.nn.networks import LoadedNetwork
from pipeline.recipes.settings import Predict
from pipeline.shapes import Float, Float64, Int64, UInt8

COMPARED = 10_000  # digits compared with as many real rows, at most
NEAREST = 1_000  # digits whose nearest training row is found, at most
PLOTTED = (100, 1_000)  # digits in PCA and t-SNE, and as many real ones
TSNE_SEED = 0


class LabelledDigits(NamedTuple):
    """Images and their classes."""

    images: UInt8[np.ndarray, "n 28 28"]
    labels: UInt8[np.ndarray, " n"]

    def first(self, n_rows: int) -> "LabelledDigits":
        return LabelledDigits(self.images[:n_rows], self.labels[:n_rows])


class Neighbours(NamedTuple):
    """The nearest training image of each image, and the Euclidean distance of the pixels, scaled to [0, 1]."""

    rows: Int64[np.ndarray, " n"]
    distances: Float64[np.ndarray, " n"]


class Embedding(NamedTuple):
    """Real and generated digits in two dimensions."""

    real: Float[np.ndarray, "n 2"]
    generated: Float[np.ndarray, "n 2"]


class GeneratedStudy:
    """Compares generated digits with rows that neither the generator nor the classifier was trained on.

    As a reference, as many training rows are compared with the same rows.

    judge: the classifier whose features are compared.
    on_progress: called with the fraction that is done, up to 1.
    """

    def __init__(
        self,
        generated: LabelledDigits,
        training: LabelledDigits,
        held_out: LabelledDigits,
        judge: LoadedNetwork,
        device: str,
        on_progress: Callable[[float], None],
    ) -> None:
        self.generated, self.training = generated, training
        self.n_compared = min(COMPARED, *map(len, (generated.images, training.images, held_out.images)))
        real, samples, reference = (
            _classify(digits.first(self.n_compared), judge, device) for digits in (held_out, generated, training)
        )
        on_progress(0.1)
        self.quality = compare_digits(samples, real)
        on_progress(0.4)
        self.reference_quality = compare_digits(reference, real)
        on_progress(0.7)
        n_nearest = min(NEAREST, self.n_compared)
        self.nearest = _find_nearest(generated.images[:n_nearest], training.images)
        self.real_nearest = _find_nearest(held_out.images[:n_nearest], training.images)
        on_progress(0.8)
        self.plotted_labels: dict[int, tuple[UInt8[np.ndarray, " n"], UInt8[np.ndarray, " n"]]] = {}
        self.pca: dict[int, Embedding] = {}
        self.tsne: dict[int, Embedding] = {}
        for n_rows in sorted({min(n_rows, self.n_compared) for n_rows in PLOTTED}):
            pixels = embedding.flatten_pixels(np.concatenate([held_out.images[:n_rows], generated.images[:n_rows]]))
            _, coordinates = embedding.fit_pca(pixels)
            points = embedding.tsne(coordinates, TSNE_SEED)
            self.plotted_labels[n_rows] = held_out.labels[:n_rows], generated.labels[:n_rows]
            self.pca[n_rows] = Embedding(coordinates[:n_rows, :2], coordinates[n_rows:, :2])
            self.tsne[n_rows] = Embedding(points[:n_rows], points[n_rows:])
        on_progress(1.0)

    def numbers(self) -> dict[str, Any]:
        """The results as plain numbers."""
        return {
            "compared": self.n_compared,
            "generated": self.quality,
            "training_rows": self.reference_quality,
            "nearest": {
                "rows": len(self.nearest.rows),
                "generated": _median_and_least(self.nearest),
                "held_out_rows": _median_and_least(self.real_nearest),
            },
        }


def _classify(digits: LabelledDigits, judge: LoadedNetwork, device: str) -> Digits:
    images = torch.from_numpy(np.ascontiguousarray(digits.images))
    probabilities = predict_probabilities(judge, images, Predict(), device, progress_bar=False)
    predictions = probabilities.argmax(1).astype(np.uint8)
    return Digits(digits.images, digits.labels, last_layer_inputs(judge.network, images), predictions)


def _find_nearest(images: UInt8[np.ndarray, "n 28 28"], training: UInt8[np.ndarray, "m 28 28"]) -> Neighbours:
    rows, distances = dataset_statistics.find_nearest(images, training)
    return Neighbours(rows, distances * 28 / 255)  # the root of the sum over 28x28 pixels instead of their mean


def _median_and_least(neighbours: Neighbours) -> dict[str, float]:
    return {"median": float(np.median(neighbours.distances)), "least": float(neighbours.distances.min())}
