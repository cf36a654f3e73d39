"""The entry of blend in the table of the extras: the mean of several recipes' predictions, as one submission."""

from pipeline.dataset import files
from pipeline.workflow.stage import Stage

ENTRY = Stage(
    name="blend",
    run="pipeline.extras.blend.stage:run",
    join="pipeline.extras.blend.stage:join",
    folder="submissions/{name}",
    inputs={
        "download": (files.TEST_LABELS,),
        "prepare": ("train_labels.npy",),
        "train": ("weights.safetensors",),
        "evaluate": ("metrics.json", "probabilities.npy", "rows.npy"),
        "predict": ("probabilities.npy",),
    },
    outputs=("submission.csv", "probabilities.npy"),
    receipt="submission.json",
    on_demand=True,
)
