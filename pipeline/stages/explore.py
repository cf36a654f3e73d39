"""explore: statistics and pictures of the data on one page; nothing is trained."""

from __future__ import annotations

from typing import Any

from pipeline import store
from pipeline.declarations import Stage, StageContext
from pipeline.reports import captions


def run(context: StageContext) -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    from pipeline.analysis.dataset_study import DatasetStudy
    from pipeline.dataset.training_arrays import read_digits, read_images
    from pipeline.reports import dataset_report

    train_images, labels = read_digits(context.files)
    images = {"train": train_images, "test": read_images(context.files, "prepare/test_images.npy")}
    settings = context.settings.explore
    with context.show_progress("explore") as on_progress:
        study = DatasetStudy(images, labels, settings.rows or len(labels), settings.seed, on_progress)
    numbers, pictures, folder = study.numbers(), dataset_report.draw(study), context.output_dir
    for name, picture in pictures.items():
        store.write(folder / name, picture)
    store.write_array(folder / "tsne.npy", np.ascontiguousarray(study.tsne))
    rows = [(first, i + 1, second, j + 1) for (first, second), pairs in study.copies.items() for i, j in pairs.tolist()]
    table = pd.DataFrame(rows, columns=["table", "row", "other_table", "other_row"])
    store.write(folder / "copies.csv", table.to_csv(index=False).encode())
    store.write_json(folder / "explore.json", numbers)
    store.write(folder / "explore.html", dataset_report.render(pictures, numbers))
    context.say(" ".join(dataset_report.summarize(numbers)))
    return numbers


STAGE = Stage(
    name="explore",
    run=run,
    folder=lambda workflow: "data/explore",
    settings=("explore",),
    inputs={"prepare": ("train_images.npy", "train_labels.npy", "test_images.npy")},
    outputs=("explore.json", "explore.html", "tsne.npy", "copies.csv", *captions.DATA),
    code=(
        "analysis.dataset_statistics",
        "analysis.dataset_study",
        "analysis.embedding",
        "dataset.copies",
        "dataset.training_arrays",
        "stages.explore",
    ),
    on_demand=True,
    recipes="all",
    single_recipe=True,
    refuses_folders=True,
)
