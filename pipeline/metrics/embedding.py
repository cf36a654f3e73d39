"""Points in few dimensions: PCA, t-SNE, and how well the digits are separated in them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from pipeline.shapes import Float, Float32, Float64, UInt8

N_COMPONENTS = 50  # of PCA, before t-SNE and nearest neighbours
MAX_COLUMNS = 1_000  # above this number, PCA uses random projections, which are faster

# With fewer rows, openTSNE's approximations, or several threads, are slower.
MIN_ROWS_APPROXIMATE = 10_000
MIN_ROWS_THREADS = 2_000
EARLY_STEPS, LATE_STEPS = 250, 500  # of t-SNE, with and without early exaggeration
NEIGHBOURS = 5  # by which the accuracy of an embedding is measured
PROGRESS_STEPS = 25  # steps between two calls of `on_progress`


def fit_pca(values: Float32[np.ndarray, "n d"], solver: str = "full") -> tuple[Any, Float32[np.ndarray, "n c"]]:
    """A fitted `sklearn.decomposition.PCA` with at most N_COMPONENTS, and the coordinates of the rows.

    solver: scikit-learn's `svd_solver`, for at most MAX_COLUMNS columns.
    """
    solver = solver if values.shape[1] <= MAX_COLUMNS else "randomized"
    pca = PCA(min(N_COMPONENTS, *values.shape), svd_solver=solver, random_state=0)
    return pca, pca.fit_transform(values).astype(np.float32)


def flatten_pixels(images: UInt8[np.ndarray, "n 28 28"]) -> Float32[np.ndarray, "n 784"]:
    """Pixels from 0 to 1, a row for each image."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def tsne(
    points: Float[np.ndarray, "n d"], seed: int, on_progress: Callable[[float], None] = lambda fraction: None
) -> Float[np.ndarray, "n 2"]:
    """t-SNE in two dimensions, initialized with the first two principal components.

    on_progress: called with the fraction that is done, up to 1.

    Source: openTSNE, P. Poličar et al., 2019; scikit-learn's t-SNE takes hours for 42,000 rows.
    """
    from openTSNE import TSNE

    n_rows, steps_done = len(points), 0

    def report(iteration: int, error: float, embedding: Any) -> None:
        nonlocal steps_done
        steps_done += PROGRESS_STEPS
        on_progress(min(steps_done / (EARLY_STEPS + LATE_STEPS), 1.0))

    approximate = n_rows > MIN_ROWS_APPROXIMATE
    model = TSNE(
        early_exaggeration_iter=EARLY_STEPS,
        n_iter=LATE_STEPS,
        perplexity=min(30, (n_rows - 1) / 3),
        neighbors="annoy" if approximate else "exact",
        negative_gradient_method="fft" if approximate else "bh",
        callbacks=report,
        callbacks_every_iters=PROGRESS_STEPS,
        random_state=seed,
        n_jobs=-1 if n_rows > MIN_ROWS_THREADS else 1,
    )
    return np.asarray(model.fit(points))


def digit_spread(points: Float[np.ndarray, "n 2"], labels: UInt8[np.ndarray, " n"]) -> Float64[np.ndarray, " 10"]:
    """The root mean squared distance of each digit's points from their mean; NaN for a digit without points."""
    spread = np.full(10, np.nan)
    for digit in np.unique(labels):
        spread[digit] = np.sqrt(points[labels == digit].var(0).sum())
    return spread


def neighbour_accuracy(points: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, " n"]) -> float:
    """The accuracy of predicting each point's digit from its nearest NEIGHBOURS.

    The most frequent digit wins; if several are equally frequent, that of the nearest of these neighbours.
    """
    neighbours = min(NEIGHBOURS, len(points) - 1)
    indices = NearestNeighbors(n_neighbors=neighbours, n_jobs=-1).fit(points).kneighbors(return_distance=False)
    votes = labels[indices]
    n_votes = (votes[:, :, None] == votes[:, None]).sum(2)  # for each neighbour, how many have its digit
    winner = n_votes.argmax(1)  # the first, that is, the nearest, of those with the most votes
    return float(np.mean(votes[np.arange(len(votes)), winner] == labels))


def silhouette(points: Float[np.ndarray, "n d"], labels: UInt8[np.ndarray, " n"]) -> float | None:
    """scikit-learn's mean silhouette of the digits, from -1 to 1; None if there are fewer than two digits."""
    if not 1 < len(np.unique(labels)) < len(labels):
        return None
    return float(silhouette_score(points, labels))
