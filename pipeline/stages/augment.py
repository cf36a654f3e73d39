"""augment: offline variants of the training rows, and a contact sheet of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.dataset import transforms
from pipeline.reports import training_figures
from pipeline.shapes import UInt8
from pipeline.training.arrays import read_digits, read_rows
from pipeline.workflow import store
from pipeline.workflow.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    images, labels = read_digits(context.files)
    if not context.recipe.train.fit_all:
        rows = read_rows(context.files, len(labels), "train_rows.npy")
        images, labels = images[rows], labels[rows]
    variants = transforms.list_variants(context.recipe.augment)

    def batches() -> Iterator[UInt8[np.ndarray, "n 28 28"]]:
        for variant in tqdm(variants, desc="augment", unit="variant", disable=None if len(variants) > 1 else True):
            yield from transforms.transform_images(images, variant)

    n_rows = len(variants) * len(images)
    path = context.output_dir / "images.npy"
    store.write_array_chunks(path, (n_rows, *images.shape[1:]), np.dtype(np.uint8), batches())
    store.write_array(context.output_dir / "labels.npy", np.tile(labels, len(variants)))

    augmented = np.load(path, mmap_mode="r").reshape(len(variants), *images.shape)
    first = [int(np.flatnonzero(labels == digit)[0]) for digit in np.unique(labels)]
    store.write(context.output_dir / "contact_sheet.png", training_figures.contact_sheet(augmented[:, first], variants))
    return {"rows": n_rows, "variants": len(variants)}
