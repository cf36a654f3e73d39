"""augment: the order of the rows, no validation rows, and the contact sheet."""

import numpy as np
import pytest

from tests.conftest import digits_28, write_tables
from tests.dataset.test_transforms import transform_one_by_one


@pytest.fixture
def augment(command, tables, tmp_path):
    """`--stage augment` on the small tables; returns images, labels and the split's training and validation rows."""

    def run(*assignments):
        write_tables(tmp_path / "data/raw", tables)
        options = [word for assignment in assignments for word in ("--set", assignment)]
        for stage in ("download", "prepare", "augment"):
            assert command("--stage", stage, "--recipe", "quick", *options, "--workspace", tmp_path).code == 0
        (folder,) = (tmp_path / "data/augmented").iterdir()
        assert (folder / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
        (split,) = (tmp_path / "data/prepared/splits").iterdir()
        rows = [np.load(split / name) for name in ("train_rows.npy", "validation_rows.npy")]
        return np.load(folder / "images.npy"), np.load(folder / "labels.npy"), *rows

    return run


def test_variant_after_variant_of_training_rows_only(augment):
    images, labels, train, validation = augment("augment.shifts=[[2, 0]]", "augment.angles=[10]")
    all_images, all_labels = digits_28(500)
    assert sorted([*train, *validation]) == list(range(400))
    original, shifted, rotated = images.reshape(3, 300, 28, 28)
    assert np.array_equal(original, all_images[train])
    assert np.array_equal(shifted[:, :, 2:], all_images[train][:, :, :-2]) and not shifted[:, :, :2].any()
    assert np.abs(rotated - transform_one_by_one(all_images[train], ("rotate", 10))).max() <= 0.501
    assert np.array_equal(labels, np.tile(all_labels[train], 3))


def test_fit_all_augments_every_row(augment):
    images, labels, _, _ = augment(
        "train.fit_all=true", "train.checkpoint_selection=last", "augment.shifts=[]", "augment.angles=[]"
    )
    all_images, all_labels = digits_28(500)
    assert np.array_equal(images, all_images[:400]) and np.array_equal(labels, all_labels[:400])
