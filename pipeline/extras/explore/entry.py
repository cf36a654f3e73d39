"""The entry of explore in the table of the extras: statistics and pictures of the data."""

from pipeline.reports import captions
from pipeline.workflow.stage import Stage

STAGE = Stage(
    name="explore",
    run="pipeline.extras.explore.stage:run",
    folder="data/explore",
    settings=("explore",),
    inputs={"prepare": ("train_images.npy", "train_labels.npy", "test_images.npy")},
    outputs=("explore.json", "explore.html", "tsne.npy", "copies.csv", *captions.DATA),
    on_demand=True,
    recipes="all",
    single_recipe=True,
    refuses_folders=True,
)
