"""The stages, each declared once: what it needs, which sections of the recipe it reads, what it leaves.

Each has a module of its name here with `run(job)`, which returns the numbers worth keeping. Stages meet in files and
never import each other.
"""

from pipeline import sources
from pipeline.stages.engine import ACCURACY, Stage, digest

PICTURES_OF_DATA = tuple(
    f"{name}.png"
    for name in (
        *("samples", "counts", "means", "greys", "variance", "components", "pca_2d", "pca_3d", "tsne", "tsne_each"),
        *("tsne_axes", "look_alikes", "near_copies"),
    )
)
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
            resumes=True,
        ),
        Stage(
            "evaluate",
            version=1,
            folder=lambda recipe: f"data/runs/{recipe.name}/evaluate",
            reads=("estimate", *ACCURACY),
            needs={
                "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy", "folds.npy"),
                "train": ("weights.safetensors",),
            },
            outputs=("metrics.json",),
            # Not where the validation rows were trained on.
            may_leave=("probabilities.npy", "confusion.png", "mistakes.png", "suspects.csv", "suspects.png"),
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
            folder=lambda recipe: "data/explore",
            reads=("explore",),
            needs={"prepare": ("train_images.npy", "train_labels.npy", "test_images.npy")},
            outputs=("explore.json", "explore.html", "tsne.npy", "copies.csv", *PICTURES_OF_DATA),
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
