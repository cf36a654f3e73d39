"""The stages, each declared once: what it needs, which sections of the recipe it reads, what it leaves.

Each has a module of its name here with `run(job)`, which returns the numbers worth keeping. Stages meet in files and
never import each other.
"""

from pipeline import sources
from pipeline.pictures import captions
from pipeline.stages.engine import ACCURACY, Stage, digest, state

EXPLORED = "data/explore"
ARRAYS = "../../arrays/"  # data/prepared/arrays, which all splits share

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "download",
            version=1,
            folder=lambda recipe: "data/raw",
            check=sources.check,
            publishes_itself=True,
        ),
        Stage(
            "prepare",
            version=1,
            folder=lambda recipe: f"data/prepared/splits/{digest(recipe, 'split')}",
            reads=("prepare", "split"),
            needs={"download": ("train.csv*", "test.csv*", "sample_submission.csv*", "*.zip")},
            outputs=(
                *(ARRAYS + name for name in ("train_images.npy", "train_labels.npy", "test_images.npy")),
                "train_rows.npy",
                "validation_rows.npy",
            ),
            may_leave=("folds.npy",),
        ),
        Stage(
            "augment",
            version=1,
            folder=lambda recipe: f"data/augmented/{digest(recipe, 'split', 'augment', 'train.fit_all')}",
            reads=("augment", "train.fit_all"),
            needs={"prepare": ("train_images.npy", "train_labels.npy", "train_rows.npy")},
            outputs=("images.npy", "labels.npy", "contact_sheet.png"),
        ),
        Stage(
            "train",
            version=1,
            folder=lambda recipe: f"data/runs/{recipe.name}/train",
            reads=("affine", "augment", "ensemble", "model", "split", "train"),
            needs={
                "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy", "folds.npy"),
                "augment": ("images.npy", "labels.npy"),
            },
            outputs=("weights.safetensors", "history.csv", "curves.png"),
            may_leave=("record.json",),
            resumes=True,
        ),
        Stage(
            "evaluate",
            version=2,
            folder=lambda recipe: f"data/runs/{recipe.name}/evaluate",
            reads=("estimate", *ACCURACY),
            needs={
                "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy", "folds.npy"),
                "train": ("weights.safetensors",),
            },
            outputs=("metrics.json",),
            # Not where the validation rows were trained on.
            may_leave=("probabilities.npy", "suspects.csv", *captions.ANSWERS),
        ),
        Stage(
            "predict",
            version=1,
            folder=lambda recipe: f"submissions/{recipe.name}",
            reads=("predict",),
            needs={
                "download": (sources.TEST_LABELS,),
                "prepare": ("test_images.npy",),
                "train": ("weights.safetensors",),
                "evaluate": ("metrics.json",),
            },
            outputs=("submission.csv", "probabilities.npy"),
            receipt="submission.json",
        ),
        Stage(
            "explore",
            version=1,
            folder=lambda recipe: EXPLORED,
            reads=("explore",),
            needs={"prepare": ("train_images.npy", "train_labels.npy", "test_images.npy")},
            outputs=("explore.json", "explore.html", "tsne.npy", "copies.csv", *captions.DATA),
            by_name=True,
        ),
        Stage(
            "inspect",
            version=1,
            folder=lambda recipe: f"data/runs/{recipe.name}/inspect",
            reads=("inspect", "train.seed"),
            needs={
                "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy", "folds.npy"),
                "augment": ("contact_sheet.png",),
                "train": ("weights.safetensors", "record.json", "curves.png"),
                "evaluate": ("metrics.json", "probabilities.npy", *captions.ANSWERS),
            },
            # The data's pictures, where they were drawn and are fresh.
            others=lambda call: {
                f"explore/{name}": (call.workspace / EXPLORED, name)
                for name in (captions.DATA if state(call, call.stages["explore"])[0] == "fresh" else ())
            },
            outputs=("inspect.json", "report.html", *captions.NETWORK),
            may_leave=(*captions.CALIBRATION, *captions.OVER_TRAINING),
            by_name=True,
        ),
        Stage(
            "submit",
            version=1,
            by_name=True,
            reads=("submit",),
            needs={"download": (), "predict": ("submission.csv",)},
            publishes_itself=True,
        ),
    )
}
