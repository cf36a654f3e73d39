"""The table of the pipeline: the seven stages in their order; `--stage all` runs all but `submit`."""

from pipeline.dataset import files
from pipeline.recipes import config
from pipeline.workflow import schemas
from pipeline.workflow.stage import Command, Stage

DOWNLOAD = Stage(
    name="download",
    run="pipeline.stages.download:run",
    folder="data/raw",
    publishes_itself=True,
    stale_reason="pipeline.dataset.sources:why_stale",
    recipes="all",
    default_recipe="quick",
)
PREPARE = Stage(
    name="prepare",
    run="pipeline.stages.prepare:run",
    folder="data/prepared/splits/{digest}",
    identity=("split",),
    settings=("prepare", "split"),
    inputs={"download": ("train.csv*", "test.csv*", "sample_submission.csv*", "*.[zZ][iI][pP]")},
    outputs=(*(f"{schemas.ARRAYS_DIR}{name}" for name in schemas.ARRAYS), "train_rows.npy", "validation_rows.npy"),
    optional_outputs=("folds.npy",),
    recipes="all",
)
AUGMENT = Stage(
    name="augment",
    run="pipeline.stages.augment:run",
    folder="data/augmented/{digest}",
    identity=("split", "augment", "train.fit_all"),
    settings=("augment", "train.fit_all"),
    inputs={"prepare": ("train_images.npy", "train_labels.npy", "train_rows.npy")},
    outputs=("images.npy", "labels.npy", "contact_sheet.png"),
    recipes="all",
)
TRAIN = Stage(
    name="train",
    run="pipeline.stages.train:run",
    folder="data/runs/{name}/train",
    settings=("affine", "augment", "ensemble", "model", "split", "train"),
    inputs={
        "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy", "folds.npy"),
        "augment": ("images.npy", "labels.npy"),
    },
    outputs=("weights.safetensors", "history.csv", "curves.png"),
    optional_outputs=("record.json",),
    code="pipeline.training.specs:training_code",
    resumes=True,
    stale_reason="pipeline.training.imagenet:why_stale",
    uses_device=True,
    check="pipeline.training.footprint:check_networks",
)
EVALUATE = Stage(
    name="evaluate",
    run="pipeline.stages.evaluate:run",
    folder="data/runs/{name}/evaluate",
    settings=("measured", *config.ACCURACY_SETTINGS),
    inputs={
        "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy", "folds.npy"),
        "train": ("weights.safetensors",),
    },
    outputs=("metrics.json",),
    # None of these if all rows were trained on.
    optional_outputs=("probabilities.npy", "rows.npy", "suspects.csv", "confusion.png", "errors.png", "suspects.png"),
    code="pipeline.training.specs:inference_code",
    uses_device=True,
)
PREDICT = Stage(
    name="predict",
    run="pipeline.stages.predict:run",
    folder="submissions/{name}",
    settings=("predict",),
    inputs={
        "download": (files.TEST_LABELS,),
        "prepare": ("test_images.npy",),
        "train": ("weights.safetensors",),
        "evaluate": ("metrics.json",),
    },
    outputs=("submission.csv", "probabilities.npy"),
    receipt="submission.json",
    code="pipeline.training.specs:inference_code",
    uses_device=True,
)
SUBMIT = Command(name="submit", run="pipeline.stages.submit:submit", can_blend=True)
_ENTRIES = (DOWNLOAD, PREPARE, AUGMENT, TRAIN, EVALUATE, PREDICT, SUBMIT)
STAGES: dict[str, Stage | Command] = {entry.name: entry for entry in _ENTRIES}
