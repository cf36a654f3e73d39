"""Offline augmentation against scipy, one image at a time."""

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import transforms
from pipeline.dataset.transforms import Variant
from pipeline.recipes.settings import Augment
from tests.conftest import digits_28

DIGITS, _ = digits_28(40)
NOISE = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)


def transform_one_by_one(images, variant):
    """The images as the published pipeline computes them, in float64, and clipped."""
    kind, amount = variant
    results = []
    for image in images.astype(np.float64):
        if kind == "shift":
            image = scipy.ndimage.shift(image, (amount[1], amount[0]), cval=0)
        elif kind == "rotate":
            image = scipy.ndimage.rotate(image, amount, reshape=False, cval=0)
        elif kind == "zoom":
            matrix = np.eye(2) / amount
            image = scipy.ndimage.affine_transform(image, matrix, offset=13.5 - 13.5 / amount, cval=0)
        results.append(np.clip(image, 0, 255))
    return np.array(results)


def transform(images, variant):
    return np.concatenate(list(transforms.transform_images(images, variant)))


@pytest.mark.parametrize(
    "variant",
    [
        Variant("original", 0.0),
        Variant("shift", (-1, 0)),
        Variant("shift", (1, 0)),
        Variant("shift", (0, -1)),
        Variant("shift", (0, 1)),
        Variant("shift", (0.5, -1.25)),
        Variant("shift", (30, 0)),
        Variant("rotate", 10),
        Variant("rotate", -10),
        Variant("rotate", 33.3),
        Variant("zoom", 1.2),
    ],
    ids=lambda variant: f"{variant.kind} {variant.amount}",
)
def test_values_are_those_of_scipy(variant):
    images = np.concatenate([DIGITS, NOISE])
    values = transform(images, variant)
    assert values.dtype == np.uint8
    assert np.abs(values - transform_one_by_one(images, variant)).max() <= 0.501


@settings(max_examples=25, deadline=None)
@given(
    st.one_of(
        st.builds(Variant, st.just("shift"), st.tuples(st.floats(-27, 27), st.floats(-27, 27))),
        st.builds(Variant, st.just("rotate"), st.floats(-360, 360)),
        st.builds(Variant, st.just("zoom"), st.floats(0.5, 2)),
    )
)
def test_any_amount(variant):
    assert np.abs(transform(NOISE, variant) - transform_one_by_one(NOISE, variant)).max() <= 0.501


def test_result_does_not_depend_on_the_size_of_batches(monkeypatch):
    expected = transform(DIGITS, Variant("rotate", 10))
    monkeypatch.setattr(transforms, "BATCH", 7)
    assert np.array_equal(transform(DIGITS, Variant("rotate", 10)), expected)


def test_each_setting_adds_a_variant_that_differs():
    for settings_ in (Augment(shifts=((1, 0),)), Augment(angles=(5,)), Augment(zooms=(1.1,))):
        original, variant = transforms.list_variants(settings_)
        assert np.array_equal(transform(DIGITS, original), DIGITS)
        assert not np.array_equal(transform(DIGITS, variant), DIGITS)
