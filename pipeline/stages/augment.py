"""augment: offline variants of the training rows, and a contact sheet of them."""

import numpy as np
from tqdm import tqdm

from pipeline import artifacts, augmentation, digits
from pipeline.pictures import training as pictures


def space(job):
    """Bytes that `run` writes at most."""
    rows = len(np.load(job.paths["prepare/train_labels.npy"], mmap_mode="r"))
    return len(augmentation.variants(job.settings.augment)) * rows * (digits.SIDE**2 + 1)


def run(job):
    rows = np.load(job.paths["prepare/train_rows.npy"])
    if job.settings.train.fit_all:
        rows = slice(None)
    images = np.load(job.paths["prepare/train_images.npy"], mmap_mode="r")[rows]
    labels = np.load(job.paths["prepare/train_labels.npy"])[rows]
    variants = augmentation.variants(job.settings.augment)

    def pieces():
        for variant in tqdm(variants, desc="augment", unit="variant", disable=None):
            yield from augmentation.batches(images, variant)

    count = len(variants) * len(images)
    artifacts.write_array(job.folder / "images.npy", (count, *images.shape[1:]), np.uint8, pieces())
    artifacts.write_array(job.folder / "labels.npy", (count,), np.uint8, [labels] * len(variants))

    made = np.load(job.folder / "images.npy", mmap_mode="r").reshape(len(variants), *images.shape)
    first = [int(np.flatnonzero(labels == digit)[0]) for digit in np.unique(labels)]
    artifacts.write(job.folder / "contact_sheet.png", pictures.contact_sheet(made[:, first], variants))
    return {"rows": count, "variants": len(variants)}
