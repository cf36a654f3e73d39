"""Random affine maps against scipy, with the same random numbers."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from pipeline.dataset.affine import random_affine
from pipeline.recipes.settings import Affine
from tests.conftest import digits_28

IMAGES = torch.from_numpy(digits_28(40)[0][:, None] / np.float32(255))


def transform(images, **settings):
    torch.manual_seed(0)
    return random_affine(images, Affine(**settings))


def test_without_limits_returns_the_batch_itself():
    assert transform(IMAGES) is IMAGES


@pytest.mark.parametrize("settings", [{"rotation": 10}, {"shift": 2}, {"zoom": 0.1}, {"shear": 10}], ids=str)
def test_each_limit_changes_every_image_differently(settings):
    result = transform(IMAGES, **settings)
    assert result.shape == IMAGES.shape and result.min() >= 0 and result.max() <= 1.001
    assert all(not torch.equal(image, original) for image, original in zip(result, IMAGES, strict=True))
    copies = transform(IMAGES[:1].expand(40, -1, -1, -1), **settings)
    assert len({image.numpy().tobytes() for image in copies}) == 40


def rotation_matrix(degrees):
    """From (row, column) of the result to (row, column) of the source."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


@pytest.mark.parametrize(
    ("settings", "matrix", "offset"),
    [
        ({"rotation": 30}, lambda u: rotation_matrix(30 * u[0]), lambda u: (0, 0)),
        ({"zoom": 0.2}, lambda u: np.eye(2) / (1 + 0.2 * u[1]), lambda u: (0, 0)),
        ({"shear": 20}, lambda u: np.array([[1, 0], [np.tan(np.radians(20 * u[2])), 1]]), lambda u: (0, 0)),
        ({"shift": 3}, lambda u: np.eye(2), lambda u: (-3 * u[4], -3 * u[3])),
    ],
    ids=["rotation", "zoom", "shear", "shift"],
)
def test_values_are_those_of_scipy(settings, matrix, offset):
    """scipy's bilinear affine_transform of each image, in (row, column) order."""
    torch.manual_seed(0)
    draws = (torch.rand(5, 40) * 2 - 1).double().numpy()
    for image, result, drawn in zip(IMAGES, transform(IMAGES, **settings), draws.T, strict=True):
        start = 13.5 - matrix(drawn) @ np.array([13.5, 13.5]) + np.array(offset(drawn))
        expected = scipy.ndimage.affine_transform(image[0].numpy(), matrix(drawn), start, order=1, mode="grid-constant")
        assert np.abs(result[0].numpy() - expected).max() < 1e-4


def test_half_of_the_images_are_flipped_left_to_right():
    result = transform(IMAGES, flip=True)
    pairs = list(zip(result, IMAGES, strict=True))
    flipped = [torch.allclose(image, original.flip(2), atol=1e-4) for image, original in pairs]
    unchanged = [torch.allclose(image, original, atol=1e-4) for image, original in pairs]
    assert all(either or other for either, other in zip(flipped, unchanged, strict=True))
    assert 10 < sum(flipped) < 30
