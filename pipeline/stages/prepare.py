"""prepare: check the CSVs and read them into uint8 arrays, which all splits share, and split off validation rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.dataset import files, splits, tables
from pipeline.dataset.copies import find_copies
from pipeline.dataset.tables import DataError
from pipeline.workflow import publishing, schemas, store
from pipeline.workflow.context import StageContext

MAX_OVERLAP = 0.01  # share of the test images that may also occur in train.csv; in MNIST none does


def run(context: StageContext) -> dict[str, Any]:
    arrays = context.published_dir.parent.parent / "arrays"
    numbers = _read_tables_once(context, arrays)
    overlap, n_test_rows = numbers.get("overlap", 0), numbers.get("test_rows", 1)
    share = overlap / n_test_rows
    if share > MAX_OVERLAP and not context.recipe.prepare.allow_overlap:
        raise DataError(
            f"{overlap} of the {n_test_rows} images of test.csv also occur in train.csv "
            f"({share:.1%}): a network can memorize them, so its score would say nothing about new digits; "
            "--set prepare.allow_overlap=true continues anyway"
        )
    labels = store.read_array(arrays / "train_labels.npy", "uint8", (None,), below=10)
    training_rows, validation_rows = splits.split_rows(labels, context.recipe.split)
    store.write_array(context.output_dir / "train_rows.npy", training_rows)
    store.write_array(context.output_dir / "validation_rows.npy", validation_rows)
    if context.recipe.split.folds:
        store.write_array(context.output_dir / "folds.npy", splits.assign_folds(labels, context.recipe.split))
    return {**numbers, "training_rows": len(training_rows), "validation_rows": len(validation_rows)}


def _read_tables_once(context: StageContext, arrays: Path) -> dict[str, Any]:
    """Publish the arrays of all three tables, unless they exist; returns the numbers of their manifest."""
    # The same for all splits: without settings.
    key = {**context.key, "settings": {}}
    publishing.restore(arrays)
    if context.run.force or not store.read_intact_manifest(arrays, key):
        _read_tables(context, arrays, key)
    numbers: dict[str, Any] = store.require_manifest(arrays)["numbers"]
    return numbers


def _read_tables(context: StageContext, folder: Path, key: dict[str, Any]) -> None:
    csvs = files.find_tables(context.files.values())  # download has checked that all three exist
    images, labels = tables.read_train_table(csvs["train"])
    test_images = tables.read_test_table(csvs["test"])
    tables.read_submission_table(csvs["sample_submission"], len(test_images))
    numbers = {
        "train_rows": len(images),
        "test_rows": len(test_images),
        "overlap": len(find_copies(images, test_images)),
    }
    staging = publishing.create_staging_dir(folder)
    for name, array in zip(schemas.ARRAYS, (images, labels, test_images), strict=True):
        store.write_array(staging / name, array)
    context.check_inputs()  # also done when the stage is published, but these arrays are published before
    store.write_manifest(staging, key, schemas.ARRAYS, numbers, context.environment)
    publishing.publish(folder)
