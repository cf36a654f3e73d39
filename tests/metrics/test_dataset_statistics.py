"""dataset_statistics: against plain loops."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pipeline.dataset.copies import find_copies
from pipeline.metrics import dataset_statistics
from pipeline.metrics.dataset_statistics import digit_statistics, find_nearest, nearest_pairs, similar_pairs
from pipeline.metrics.embedding import fit_pca, flatten_pixels
from pipeline.reports import training_figures
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(600)
FLAT = IMAGES.reshape(600, -1).astype(float)


def test_digit_statistics_are_those_of_a_plain_loop():
    statistics = digit_statistics(IMAGES, LABELS)
    for digit in range(10):
        of_digit = [image for image, label in zip(IMAGES, LABELS, strict=True) if label == digit]
        assert statistics.rows[digit] == len(of_digit)
        assert np.allclose(statistics.mean[digit], sum(image.astype(float) for image in of_digit) / len(of_digit))
        assert np.allclose(statistics.std[digit], np.std(of_digit, axis=0))
        assert statistics.gray_levels[digit].sum() == 784 * len(of_digit)
        for level in (0, 15, 240):
            assert statistics.gray_levels[digit][level] == sum(int((image == level).sum()) for image in of_digit)
        assert statistics.ink[digit] == pytest.approx(np.mean([image.mean() / 255 for image in of_digit]))


def test_a_digit_without_rows():
    kept = LABELS != 3
    statistics = digit_statistics(IMAGES[kept], LABELS[kept])
    assert statistics.rows[3] == 0 and np.isnan(statistics.ink[3])
    assert np.isfinite(np.delete(statistics.ink, 3)).all()
    figures = pytest.importorskip("pipeline.extras.explore.figures")
    for picture in (
        training_figures.samples(IMAGES[kept], LABELS[kept], columns=3),
        figures.means(statistics.mean, statistics.std),
        figures.gray_levels(statistics.gray_levels, statistics.ink),
    ):
        assert picture.startswith(b"\x89PNG")


def test_copies():
    images = np.concatenate([IMAGES[:50], IMAGES[[3, 7, 3]]])
    assert find_copies(images).tolist() == [[3, 50], [7, 51], [3, 52]]
    assert find_copies(IMAGES[:5], IMAGES[[4, 9, 1]]).tolist() == [[4, 0], [1, 2]]
    assert find_copies(IMAGES[:5], IMAGES[10:12]).shape == (0, 2)


def test_nearest_images():
    indices, distances = find_nearest(IMAGES[:40], IMAGES[40:90])
    expected = cdist(FLAT[:40], FLAT[40:90]) / 28
    assert np.allclose(distances, expected.min(1), atol=1e-3)
    assert np.allclose(expected[range(40), indices], expected.min(1))
    _, distances = find_nearest(IMAGES[:90])  # an image is not its own neighbour
    expected = cdist(FLAT[:90], FLAT[:90]) / 28 + np.diag(np.full(90, np.inf))
    assert np.allclose(distances, expected.min(1), atol=1e-3)


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    expected = find_nearest(IMAGES[:90])
    monkeypatch.setattr(dataset_statistics, "BLOCK_ROWS", 7)
    assert all(np.array_equal(first, second) for first, second in zip(expected, find_nearest(IMAGES[:90]), strict=True))


@pytest.mark.parametrize("limit", [4, 20])
def test_nearest_pairs_are_ordered_and_not_equal(limit):
    images = np.concatenate([IMAGES[:60], IMAGES[:3]])  # three exact copies
    pairs = nearest_pairs(images, None, limit)
    distances = cdist(FLAT[:60], FLAT[:60]) / 28 + np.diag(np.full(60, np.inf))
    expected = {(min(i, j), max(i, j)) for i, j in enumerate(distances.argmin(1).tolist())}
    assert [pair[:2] for pair in pairs] == sorted(expected, key=lambda pair: distances[pair])[:limit]
    (i, j, distance), *_ = nearest_pairs(IMAGES[:30], IMAGES[30:90], 1)
    expected = cdist(FLAT[:30], FLAT[30:90]) / 28
    assert (i, j) == np.unravel_index(expected.argmin(), expected.shape) and distance == pytest.approx(expected.min())


def test_nearest_pairs_of_copies_and_of_images_whose_nearest_comes_earlier():
    images = np.zeros((5, 28, 28), np.uint8)
    images[2, 0, 0] = 1  # a near copy of two equal images
    images[3, 1, :9] = 40  # nearest to one of the first, which has a nearer one
    images[4] = 200
    assert [pair[:2] for pair in nearest_pairs(images, None, 9)][:2] == [(0, 2), (0, 3)]
    assert [pair[:2] for pair in nearest_pairs(images[[0, 2, 3]], images[[1, 4]], 9)] == [(1, 0), (2, 0)]
    assert nearest_pairs(images[:2], None, 9) == nearest_pairs(images[:2], images, 9) == []


def test_similar_pairs_are_the_nearest():
    _, points = fit_pca(flatten_pixels(IMAGES))
    pairs = similar_pairs(points, LABELS, (3, 8), 4)
    distances = cdist(points[LABELS == 3], points[LABELS == 8])
    nearest = np.unravel_index(distances.argmin(), distances.shape)
    assert pairs[0].tolist() == [np.flatnonzero(LABELS == 3)[nearest[0]], np.flatnonzero(LABELS == 8)[nearest[1]]]
    assert len(set(pairs[:, 1])) == len(pairs) == 4
    lengths = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    assert (np.diff(lengths) >= 0).all()
    assert (LABELS[pairs[:, 0]] == 3).all() and (LABELS[pairs[:, 1]] == 8).all()
    assert len(similar_pairs(points, np.zeros(600, np.uint8), (3, 8), 4)) == 0
