"""prepare: check and read the CSVs into uint8 arrays (once; the splits share them), and split off validation rows."""

import numpy as np
from tqdm import tqdm

from pipeline import artifacts, digits, sources

MOST_OVERLAP = 0.01  # of the test rows; MNIST itself has none


def space(job):
    """Bytes that `run` writes at most: a pixel takes one, and two or more in a CSV."""
    return sum(digits.Table(*where).size() for where in sources.find_tables(job.paths.values()).values()) // 2


def run(job):
    arrays = job.place.parent.parent / "arrays"
    key = {**job.key, "settings": {}}
    artifacts.restore(arrays)
    manifest, _ = artifacts.read_manifest(arrays)
    same = manifest and all(manifest[name] == value for name, value in key.items())
    if job.call.force or not same or artifacts.changed_outputs(arrays, manifest):
        _read(job, arrays, key)
        manifest, _ = artifacts.read_manifest(arrays)

    found = manifest["numbers"]
    share = found["overlap"] / found["test_rows"]
    if share > MOST_OVERLAP and not job.settings.prepare.allow_overlap:
        raise digits.DataError(
            f"{found['overlap']} of the {found['test_rows']} images of test.csv also stand in train.csv ({share:.1%}): "
            "a network can know them by heart, so its score would say nothing about new digits; "
            "--set prepare.allow_overlap=true goes on all the same"
        )
    labels = np.load(arrays / "train_labels.npy")
    train, validation = digits.split(labels, job.settings.split)
    for name, rows in (("train_rows", train), ("validation_rows", validation)):
        artifacts.write_array(job.folder / f"{name}.npy", rows.shape, rows.dtype, [rows])
    if job.settings.split.folds:
        folds = digits.folds(labels, job.settings.split)
        artifacts.write_array(job.folder / "folds.npy", folds.shape, folds.dtype, [folds])
    return {**found, "training_rows": len(train), "validation_rows": len(validation)}


def _read(job, arrays, key):
    """Read and check all three tables, and publish the arrays."""
    tables = {
        name: digits.Table(*where)
        for name, where in sources.find_tables(job.paths.values()).items()  # download saw to it that all are there
    }
    with tqdm(total=len(tables), desc="prepare", unit="table", disable=None) as bar:
        images, labels = digits.read_train(tables["train"])
        bar.update()
        test_images = digits.read_test(tables["test"])
        bar.update()
        digits.read_submission(tables["sample_submission"], len(test_images))
        bar.update()
    numbers = {
        "train_rows": len(images),
        "test_rows": len(test_images),
        "overlap": digits.overlap(images, test_images),
    }
    partial = artifacts.begin(arrays)
    made = {"train_images.npy": images, "train_labels.npy": labels, "test_images.npy": test_images}
    for name, array in made.items():
        artifacts.write_array(partial / name, array.shape, array.dtype, [array])
    job.check_inputs()  # the engine will too, but then these arrays would stand published
    artifacts.write_manifest(partial, key, list(made), numbers, job.context)
    artifacts.publish(arrays)
