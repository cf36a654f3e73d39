"""augment: scipy's values per image, the order of the rows, validation rows kept out, random maps against scipy."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import augmentation
from pipeline.settings import Affine, Augment
from tests.conftest import SHORT, digits_28

IMAGES, LABELS = digits_28(40)
NOISE = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)


def through_scipy(images, variant):
    """An image at a time in float64, as the published pipeline does it, and clipped."""
    kind, amount = variant
    out = []
    for image in images.astype(np.float64):
        if kind == "shift":
            image = scipy.ndimage.shift(image, (amount[1], amount[0]), cval=0)
        elif kind == "rotate":
            image = scipy.ndimage.rotate(image, amount, reshape=False, cval=0)
        elif kind == "zoom":
            matrix = np.eye(2) / amount
            image = scipy.ndimage.affine_transform(image, matrix, offset=13.5 - 13.5 / amount, cval=0)
        out.append(np.clip(image, 0, 255))
    return np.array(out)


def ours(images, variant):
    return np.concatenate(list(augmentation.batches(images, variant)))


PUBLISHED = [
    ("shift", (-1, 0)),
    ("shift", (1, 0)),
    ("shift", (0, -1)),
    ("shift", (0, 1)),
    ("rotate", 10),
    ("rotate", -10),
]


@pytest.mark.parametrize(
    "variant",
    [*PUBLISHED, ("original", 0), ("shift", (0.5, -1.25)), ("shift", (30, 0)), ("rotate", 33.3), ("zoom", 1.2)],
    ids=str,
)
@pytest.mark.parametrize("images", [IMAGES, NOISE], ids=["digits", "noise"])
def test_values_are_scipys(images, variant):
    values = ours(images, variant)
    assert values.dtype == np.uint8
    assert np.abs(values - through_scipy(images, variant)).max() <= 0.501


@settings(max_examples=25, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just("shift"), st.tuples(st.floats(-27, 27), st.floats(-27, 27))),
        st.tuples(st.just("rotate"), st.floats(-360, 360)),
        st.tuples(st.just("zoom"), st.floats(0.5, 2)),
    )
)
def test_any_variant_is_scipys(variant):
    assert np.abs(ours(NOISE, variant) - through_scipy(NOISE, variant)).max() <= 0.501


def test_batches_do_not_show(monkeypatch):
    whole = ours(IMAGES, ("rotate", 10))
    monkeypatch.setattr(augmentation, "BATCH", 7)
    assert np.array_equal(ours(IMAGES, ("rotate", 10)), whole)


def test_each_setting_changes_the_output():
    plain = augmentation.variants(Augment())
    for more in (Augment(shifts=((1, 0),)), Augment(angles=(5,)), Augment(zooms=(1.1,))):
        (new,) = (variant for variant in augmentation.variants(more) if variant not in plain)
        assert not np.array_equal(ours(IMAGES, new), IMAGES)


def test_the_stage_writes_variant_after_variant_of_training_rows_only(command, finished):
    words = ("--set", "augment.shifts=[[2, 0]]", "--set", "augment.angles=[10]", "--workspace", finished)
    assert command("--stage", "augment", *SHORT, *words).code == 0
    (folder,) = (path.parent for path in (finished / "data/augmented").glob("*/images.npy")
                 if np.load(path, mmap_mode="r").shape[0] == 900)  # fmt: skip
    images, labels = digits_28(500)
    (split,) = (finished / "data/prepared/splits").iterdir()
    train, validation = np.load(split / "train_rows.npy"), np.load(split / "validation_rows.npy")
    assert sorted([*train, *validation]) == list(range(400))
    made = np.load(folder / "images.npy").reshape(3, 300, 28, 28)
    assert np.array_equal(made[0], images[train])
    assert np.array_equal(made[1][:, :, 2:], images[train][:, :, :-2]) and not made[1][:, :, :2].any()
    assert np.abs(made[2] - through_scipy(images[train], ("rotate", 10))).max() <= 0.501
    assert np.array_equal(np.load(folder / "labels.npy"), np.tile(labels[train], 3))
    assert (folder / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def random_affine(images, **settings):
    torch.manual_seed(0)
    return augmentation.random_affine(images, Affine(**settings))


class TestRandomAffine:
    images = torch.from_numpy(IMAGES[:, None] / np.float32(255))

    def test_nothing_asked_nothing_done(self):
        assert random_affine(self.images) is self.images

    @pytest.mark.parametrize("setting", [{"rotation": 10}, {"shift": 2}, {"zoom": 0.1}, {"shear": 10}], ids=str)
    def test_each_setting_changes_images_and_each_image_otherwise(self, setting):
        made = random_affine(self.images, **setting)
        assert made.shape == self.images.shape and made.min() >= 0 and made.max() <= 1.001
        assert all(not torch.equal(one, two) for one, two in zip(made, self.images, strict=True))
        same = random_affine(self.images[:1].expand(40, -1, -1, -1), **setting)
        assert len({image.numpy().tobytes() for image in same}) == 40

    @pytest.mark.parametrize(
        ("setting", "matrix", "offset"),
        [
            ({"rotation": 30}, lambda u: rotation(30 * u[0]), lambda u: (0, 0)),
            ({"zoom": 0.2}, lambda u: np.eye(2) / (1 + 0.2 * u[1]), lambda u: (0, 0)),
            ({"shear": 20}, lambda u: np.array([[1, 0], [np.tan(np.radians(20 * u[2])), 1]]), lambda u: (0, 0)),
            ({"shift": 3}, lambda u: np.eye(2), lambda u: (-3 * u[4], -3 * u[3])),
        ],
        ids=["rotation", "zoom", "shear", "shift"],
    )
    def test_amounts_are_those_asked_for(self, setting, matrix, offset):
        """Against scipy's bilinear affine_transform of each image, in (row, column) order, with the same draws."""
        torch.manual_seed(0)
        draws = (torch.rand(5, 40) * 2 - 1).double().numpy()
        made = random_affine(self.images, **setting)
        for image, result, drawn in zip(self.images, made, draws.T, strict=True):
            by = matrix(drawn)
            start = 13.5 - by @ np.array([13.5, 13.5]) + np.array(offset(drawn))
            wanted = scipy.ndimage.affine_transform(image[0].numpy(), by, start, order=1, mode="grid-constant")
            assert np.abs(result[0].numpy() - wanted).max() < 1e-4


def rotation(degrees):
    """(row, column) of the source for a turn of the sampling grid."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])
