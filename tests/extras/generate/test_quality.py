"""sample_quality: scipy's matrix square root and plain loops as oracles."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pipeline.extras.generate import quality
from pipeline.extras.generate.quality import Digits, compare_digits, frechet_distance, is_among
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(120)
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(120, 6)).astype(np.float32)


def digits(images=IMAGES, labels=LABELS, features=FEATURES, predictions=LABELS):
    return Digits(images, labels, features, predictions)


def test_frechet_distance_is_the_textbook_formula():
    mixed = FEATURES @ RANDOM.normal(size=(6, 6)).astype(np.float32) + 0.5
    first, second = (np.cov(rows.astype(float), rowvar=False) for rows in (FEATURES, mixed))
    expected = np.square(FEATURES.mean(0) - mixed.mean(0)).sum()
    expected += np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(FEATURES, mixed) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(FEATURES, FEATURES) == pytest.approx(0, abs=1e-6)


def test_a_feature_that_is_always_zero_is_no_problem():
    dead = FEATURES * np.array([1, 1, 0, 1, 1, 1], np.float32)
    shifted = dead + np.array([1, 0, 0, 0, 0, 0], np.float32)
    assert frechet_distance(dead, shifted) == pytest.approx(1, rel=1e-5)


def test_is_among_compares_with_the_distance_of_the_kth_neighbour():
    points = 1.5 * RANDOM.normal(size=(50, 6)).astype(np.float32)
    radii = []
    for i in range(len(FEATURES)):
        radii.append(sorted(np.linalg.norm(FEATURES[i] - FEATURES[j]) for j in range(len(FEATURES)) if j != i)[2])
    expected = []
    for point in points:
        distances = [np.linalg.norm(point - feature) for feature in FEATURES]
        expected.append(any(distance <= radius for distance, radius in zip(distances, radii, strict=True)))
    assert is_among(points, FEATURES).tolist() == expected and 0 < np.mean(expected) < 1


def test_the_mean_distance_is_that_of_a_plain_loop():
    images = IMAGES[:20]
    flat = images.reshape(20, -1) / 255
    pairs = [np.linalg.norm(flat[i] - flat[j]) for i in range(20) for j in range(i)]
    assert quality.mean_distance(images) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert quality.mean_distance(images[:1]) is None


def test_equal_sets_have_the_best_values():
    measured = compare_digits(digits(), digits())
    assert measured["recognized"] == measured["precision"] == measured["recall"] == 1
    assert [row["diversity"] for row in measured["by_class"]] == [1.0] * 10


def test_a_class_that_collapsed_shows_in_its_diversity_and_collapsed_features_in_recall():
    images = IMAGES.copy()
    rows = np.flatnonzero(LABELS == 4)
    images[rows] = images[rows[0]]
    measured = compare_digits(digits(images=images, features=FEATURES * np.float32(0.01)), digits())
    by_class = {row["class"]: row["diversity"] for row in measured["by_class"]}
    assert by_class.pop(4) == pytest.approx(0, abs=1e-5) and set(by_class.values()) == {1.0}
    assert measured["recall"] < 0.1


def test_the_share_that_is_recognized_is_counted_by_class():
    predictions = LABELS.copy()
    predictions[LABELS == 7] = 1
    measured = compare_digits(digits(predictions=predictions), digits())
    by_class = [row["recognized"] for row in measured["by_class"]]
    assert by_class == [1, 1, 1, 1, 1, 1, 1, 0, 1, 1]
    assert measured["recognized"] == pytest.approx(1 - np.mean(LABELS == 7))


def test_a_class_without_digits_has_no_value():
    kept = LABELS != 2
    part = digits(IMAGES[kept], LABELS[kept], FEATURES[kept], LABELS[kept])
    assert compare_digits(part, digits())["by_class"][2] == {"class": 2, "recognized": None, "diversity": None}
