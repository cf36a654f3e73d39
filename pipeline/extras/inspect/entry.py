"""The entry of inspect in the table of the extras: pictures of a trained network."""

from pipeline.reports import captions
from pipeline.workflow.stage import Stage

STAGE = Stage(
    name="inspect",
    run="pipeline.extras.inspect.stage:run",
    folder="data/runs/{name}/inspect",
    settings=("inspect",),
    inputs={
        "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy", "folds.npy"),
        "augment": ("contact_sheet.png",),
        "train": ("weights.safetensors", "record.json", "curves.png"),
        "evaluate": ("metrics.json", "probabilities.npy", "rows.npy", *captions.ERRORS),
    },
    extra_inputs={"explore": tuple(captions.DATA)},
    outputs=("inspect.json", "report.html", *captions.NETWORK),
    optional_outputs=(*captions.CALIBRATION, *captions.RECORDED),
    code="pipeline.training.specs:inference_code",
    on_demand=True,
    single_recipe=True,
    uses_device=True,
)
