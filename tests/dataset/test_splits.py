"""The validation split and the folds."""

import numpy as np
import pytest

from pipeline.dataset import splits
from pipeline.dataset.tables import DataError
from pipeline.recipes.settings import Split

LABELS = np.random.default_rng(0).integers(0, 10, 2000).astype(np.uint8)


def test_split_is_a_stratified_partition():
    train, validation = splits.split_rows(LABELS, Split())
    assert sorted([*train, *validation]) == list(range(2000))
    assert len(validation) == 500
    shares = np.bincount(LABELS[validation], minlength=10) / np.bincount(LABELS, minlength=10)
    assert np.abs(shares - 0.25).max() < 0.006
    assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()


def test_seed_and_fraction_determine_the_split():
    first, second = (splits.split_rows(LABELS, Split(seed=seed))[1] for seed in (0, 1))
    assert np.array_equal(first, splits.split_rows(LABELS, Split(seed=0))[1])
    assert not np.array_equal(first, second)
    assert len(splits.split_rows(LABELS, Split(fraction=0.1))[1]) == 200


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        ([0, 0, 1, 1, 2], 0.25, "label 2 occurs in only one row"),
        ([5], 0.25, "label 5 occurs in only one row"),
        ([0, 0, 1, 1], 0.25, r"split\.fraction 0\.25 holds out 1 of 4 rows"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2, 0.51, r"split\.fraction 0\.51 holds out 11 of 20 rows"),
        ([0, 1] * 200, 0.0001, r"split\.fraction 0\.0001 holds out 1 of 400 rows"),
    ],
)
def test_too_few_rows_for_a_split(labels, fraction, message):
    with pytest.raises(DataError, match=message):
        splits.split_rows(np.array(labels, np.uint8), Split(fraction=fraction))


def test_too_few_rows_for_folds():
    with pytest.raises(DataError, match=r"label 1 occurs in only 2 rows, but split\.folds 3 requires one row per fold"):
        splits.assign_folds(np.array([0, 0, 0, 1, 1], np.uint8), Split(folds=3))


def test_as_many_validation_rows_as_labels_are_enough():
    labels = np.repeat(np.arange(10, dtype=np.uint8), 2)
    train, validation = splits.split_rows(labels, Split(fraction=0.5))
    assert sorted(labels[train]) == sorted(labels[validation]) == list(range(10))


def test_folds_are_stratified_and_depend_on_the_seed():
    first, again, other = (splits.assign_folds(LABELS, Split(folds=4, seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    for label in range(10):
        counts = np.bincount(first[label == LABELS], minlength=4)
        assert len(counts) == 4 and counts.max() - counts.min() <= 1
    # Rows that follow one another are not in the same fold: most of their folds differ.
    assert np.mean(np.diff(first.astype(int)) != 0) > 0.6
