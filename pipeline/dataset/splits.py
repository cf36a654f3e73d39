"""Stratified validation splits and folds."""

import math

import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

from pipeline.dataset.tables import DataError
from pipeline.recipes.settings import Split
from pipeline.shapes import Int64, UInt8


def split_rows(
    labels: UInt8[np.ndarray, " n"], settings: Split
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]:
    """Training rows and validation rows (from 0, ascending), stratified by label. Raises DataError.

    With folds, both contain every row, and `assign_folds` determines which rows each network holds out.
    """
    rows = np.arange(len(labels))
    if settings.folds:
        return rows, rows
    counts = np.bincount(labels, minlength=10)
    n_validation = math.ceil(len(labels) * settings.fraction)
    n_classes = np.count_nonzero(counts)
    if 1 in counts:
        label = counts.tolist().index(1)
        raise DataError(
            f"train.csv: label {label} occurs in only one row, but the split requires two rows per label: "
            "remove this row, or add another one"
        )
    if n_validation < n_classes or len(labels) - n_validation < n_classes:
        raise DataError(
            f"train.csv: split.fraction {settings.fraction} holds out {n_validation} of {len(labels)} rows, but both "
            f"parts require at least {n_classes} rows, one per label"
        )
    parts = train_test_split(rows, test_size=settings.fraction, stratify=labels, random_state=settings.seed)
    train, validation = (np.sort(part) for part in parts)
    return train, validation


def assign_folds(labels: UInt8[np.ndarray, " n"], settings: Split) -> UInt8[np.ndarray, " n"]:
    """The fold, from 0 to `settings.folds` - 1, that holds out each row, stratified by label. Raises DataError."""
    for label, count in enumerate(np.bincount(labels)):
        if 0 < count < settings.folds:
            n_rows = "1 row" if count == 1 else f"{count} rows"
            raise DataError(
                f"train.csv: label {label} occurs in only {n_rows}, but split.folds {settings.folds} requires one row "
                "per fold"
            )
    splitter = StratifiedKFold(settings.folds, shuffle=True, random_state=settings.seed)
    folds = np.empty(len(labels), np.uint8)
    for fold, (_, validation) in enumerate(splitter.split(labels, labels)):
        folds[validation] = fold
    return folds
