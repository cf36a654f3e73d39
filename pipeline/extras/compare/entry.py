"""The entry of compare in the table of the extras: recipes, each with several seeds, in a table and in pictures."""

from pipeline.dataset import files
from pipeline.workflow.stage import Stage

ENTRY = Stage(
    name="compare",
    run="pipeline.extras.compare.stage:run",
    join="pipeline.extras.compare.recipes:join",
    folder="data/compare/{name}",
    settings=("affine", "augment", "baseline", "compare", "ensemble", "model", "published", "split", "train"),
    inputs={
        "download": (files.TEST_LABELS,),
        "prepare": ("train_images.npy", "train_labels.npy", "test_images.npy", "validation_rows.npy", "folds.npy"),
        "augment": ("images.npy", "labels.npy"),
    },
    outputs=("table.csv", "table.md", "compare.html"),
    code="pipeline.training.specs:training_code",
    on_demand=True,
    ensures_inputs=True,
    uses_device=True,
    resumes=True,
    stale_reason="pipeline.training.imagenet:why_stale",
    check="pipeline.training.footprint:check_networks",
)
