"""embedding: PCA against the singular value decomposition, t-SNE, and measures of separation against plain loops."""

import numpy as np
import pytest

from pipeline.metrics.embedding import digit_spread, fit_pca, flatten_pixels, neighbour_accuracy, silhouette, tsne
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(600)


@pytest.mark.parametrize(("n_rows", "solver"), [(600, "covariance_eigh"), (600, "full"), (40, "full")])
def test_principal_components_are_singular_vectors(n_rows, solver):
    pixels = flatten_pixels(IMAGES[:n_rows])
    pca, coordinates = fit_pca(pixels, solver)
    left, singular_values, _ = np.linalg.svd(pixels.astype(float) - pixels.mean(0), full_matrices=False)
    shares = singular_values**2 / (singular_values**2).sum()
    assert np.allclose(pca.explained_variance_ratio_, shares[: min(50, n_rows)], atol=1e-5)
    for column in range(3):
        expected = np.abs(left[:, column] * singular_values[column])
        assert np.allclose(np.abs(coordinates[:, column]), expected, atol=2e-3)


def test_wide_features_are_reduced_to_their_principal_components():
    values = np.random.default_rng(0).normal(size=(80, 1200)) * np.r_[9, 7, 5, np.full(1197, 0.05)]
    left, singular_values, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    for wide in (values, values[:, :900]):
        _, coordinates = fit_pca(wide.astype(np.float32))
        assert coordinates.shape == (80, 50)
        assert np.allclose(np.abs(coordinates[:, :3]), np.abs(left[:, :3] * singular_values[:3]), atol=0.05)


def test_tsne_keeps_neighbours_and_is_repeatable():
    _, coordinates = fit_pca(flatten_pixels(IMAGES[:150]))
    progress = []
    points = tsne(coordinates, 0, progress.append)
    assert points.shape == (150, 2) and neighbour_accuracy(points, LABELS[:150]) > 0.85
    assert progress == sorted(progress) and progress[-1] == 1.0
    assert np.array_equal(points, tsne(coordinates, 0))


def test_spread_and_neighbour_accuracy_are_those_of_plain_loops():
    random = np.random.default_rng(0)
    points, labels = random.normal(size=(80, 2)), random.integers(0, 4, 80).astype(np.uint8)
    spread = digit_spread(points, labels)
    for digit in range(4):
        of_digit = points[labels == digit]
        mean = of_digit.mean(0)
        squares = [(x - mean[0]) ** 2 + (y - mean[1]) ** 2 for x, y in of_digit]
        assert spread[digit] == pytest.approx(np.sqrt(np.mean(squares)))
    assert np.isnan(spread[4:]).all()
    n_correct = 0
    for i in range(80):
        order = sorted((j for j in range(80) if j != i), key=lambda j: np.linalg.norm(points[i] - points[j]))[:5]
        votes = [labels[j] for j in order]
        most_votes = max(votes.count(digit) for digit in votes)
        n_correct += next(digit for digit in votes if votes.count(digit) == most_votes) == labels[i]
    assert neighbour_accuracy(points, labels) == n_correct / 80


def test_silhouette_is_that_of_a_plain_loop():
    points, labels = np.random.default_rng(0).normal(size=(30, 2)), (np.arange(30) % 3).astype(np.uint8)
    scores = []
    for i in range(30):
        distances = [
            np.mean([np.linalg.norm(points[i] - points[j]) for j in range(30) if labels[j] == digit and j != i])
            for digit in range(3)
        ]
        own, nearest = distances[labels[i]], min(distances[digit] for digit in range(3) if digit != labels[i])
        scores.append((nearest - own) / max(own, nearest))
    assert silhouette(points, labels) == pytest.approx(np.mean(scores))
    assert silhouette(points, np.zeros(30, np.uint8)) is None
