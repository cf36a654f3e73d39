"""explore: statistics and pictures of the data on one page; nothing is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import display_path
from pipeline.extras.explore import report
from pipeline.extras.explore.study import DatasetStudy
from pipeline.training.arrays import read_digits, read_images
from pipeline.workflow import store
from pipeline.workflow.context import StageContext


def run(context: StageContext) -> dict[str, Any]:
    train_images, labels = read_digits(context.files)
    images = {"train": train_images, "test": read_images(context.files, "prepare/test_images.npy")}
    settings = context.recipe.explore
    with context.show_progress("explore") as on_progress:
        study = DatasetStudy(images, labels, settings.rows or len(labels), settings.seed, on_progress)
    numbers, pictures, folder = study.numbers(), report.draw(study), context.output_dir
    for name, picture in pictures.items():
        store.write(folder / name, picture)
    store.write_array(folder / "tsne.npy", np.ascontiguousarray(study.tsne))
    rows = [(first, i + 1, second, j + 1) for (first, second), pairs in study.copies.items() for i, j in pairs.tolist()]
    table = pd.DataFrame(rows, columns=["table", "row", "other_table", "other_row"])
    store.write(folder / "copies.csv", table.to_csv(index=False).encode())
    store.write_json(folder / "explore.json", numbers)
    store.write(folder / "explore.html", report.render(pictures, numbers))
    context.say(" ".join(report.summarize(numbers)))
    context.run.report("page", display_path(context.published_dir / "explore.html"))
    return numbers
