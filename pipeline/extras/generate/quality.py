"""Quality and diversity of generated digits, compared with real ones, in pixels and in the features of a classifier."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from pipeline.metrics.embedding import flatten_pixels
from pipeline.shapes import Bool, Float32, Float64, UInt8

NEIGHBOURS = 3  # of precision and recall, as in their source


@dataclass(frozen=True)
class Digits:
    """Images with the class that each should show, and what a classifier makes of them."""

    images: UInt8[np.ndarray, "n 28 28"]
    labels: UInt8[np.ndarray, " n"]
    features: Float32[np.ndarray, "n d"]  # the inputs of the classifier's last layer
    predictions: UInt8[np.ndarray, " n"]


def compare_digits(digits: Digits, real: Digits) -> dict[str, Any]:
    """Measure digits against real ones.

    "recognized": share that the classifier predicts as their own class.
    "frechet_distance": between the features (M. Heusel et al., 2017), with this classifier in place of Inception.
    "precision", "recall": share of the digits among the real features, and the reverse (T. Kynkäänniemi et al., 2019).
    "by_class": the share recognized, and "diversity", the mean distance in pixels between two digits of the class,
        divided by that of two real ones: near 0 if the class has collapsed to one image. None without digits.
    """
    correct = digits.predictions == digits.labels
    by_class = []
    for label in range(10):
        rows = digits.labels == label
        distances = [mean_distance(part.images[part.labels == label]) for part in (digits, real)]
        by_class.append(
            {
                "class": label,
                "recognized": float(correct[rows].mean()) if rows.any() else None,
                "diversity": distances[0] / distances[1] if distances[0] is not None and distances[1] else None,
            }
        )
    return {
        "recognized": float(correct.mean()),
        "frechet_distance": frechet_distance(digits.features, real.features),
        "precision": float(is_among(digits.features, real.features).mean()),
        "recall": float(is_among(real.features, digits.features).mean()),
        "by_class": by_class,
    }


def frechet_distance(first: Float32[np.ndarray, "n d"], second: Float32[np.ndarray, "m d"]) -> float:
    """The squared Fréchet distance of two normal distributions with the means and covariances of the rows."""
    means, covariances = zip(
        *((rows.mean(0, np.float64), np.cov(rows.astype(np.float64), rowvar=False)) for rows in (first, second)),
        strict=True,
    )
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # The trace of the square root of the product of the covariances, which has the eigenvalues of this product.
    eigenvalues = np.linalg.eigvalsh(root @ covariances[1] @ root)
    mean_term = np.square(means[0] - means[1]).sum()
    trace = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(mean_term + trace)


def is_among(points: Float32[np.ndarray, "n d"], manifold: Float32[np.ndarray, "m d"]) -> Bool[np.ndarray, " n"]:
    """Whether each point is at most as far from a row of `manifold` as its NEIGHBOURS-th nearest other row is."""
    distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(manifold).kneighbors()
    radii = distances[:, -1]
    chunks = pairwise_distances_chunked(points, manifold, reduce_func=lambda chunk, start: (chunk <= radii).any(1))
    return np.concatenate(list(chunks))


def mean_distance(images: UInt8[np.ndarray, "n 28 28"]) -> float | None:
    """The mean Euclidean distance between two images, in pixels scaled to [0, 1]; None for fewer than two."""
    n_pairs = len(images) * (len(images) - 1)
    if not n_pairs:
        return None
    sums = pairwise_distances_chunked(flatten_pixels(images), reduce_func=lambda chunk, start: chunk.sum(1, np.float64))
    total: Float64[np.ndarray, ""] = np.concatenate(list(sums)).sum()
    return float(total / n_pairs)
