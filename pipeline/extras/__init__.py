"""The table of the extras: features on demand, each in a folder of its own that can be deleted with its entry."""

from pipeline.dataset import files
from pipeline.reports import captions
from pipeline.workflow.stage import Stage

COMPARE = Stage(
    name="compare",
    run="pipeline.extras.compare.stage:run",
    command="pipeline.extras.compare.command:run",
    status="pipeline.extras.compare.command:status",
    folder="data/compare/{title}",
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
EXPLORE = Stage(
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
INSPECT = Stage(
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
RECOGNIZE = Stage(
    name="recognize",
    run="pipeline.extras.recognize.command:run",
    folder="data/recognized",
    settings=("predict",),
    # The networks are inputs only if they are fresh: otherwise, there are the pretrained ones.
    extra_inputs={"train": ("weights.safetensors",), "evaluate": ("metrics.json",)},
    outputs=("recognized.csv", "recognized.png"),
    code="pipeline.training.specs:inference_code",
    on_demand=True,
    single_recipe=True,
    default_recipe="quick",  # it has a pretrained network
    uses_device=True,
    # Results are published although a file could not be read; then the stage ends with an error.
    publishes_itself=True,
)
EXPORT = Stage(
    name="export",
    run="pipeline.extras.export.stage:run",
    folder="data/runs/{name}/export",
    settings=("predict", "estimate"),
    inputs={
        "prepare": ("train_images.npy",),
        "train": ("weights.safetensors",),
        "evaluate": ("metrics.json", "errors.png", "confusion.png"),
    },
    outputs=("model.onnx", "MODEL_CARD.md"),
    optional_outputs=("demo.html", "errors.png", "confusion.png"),
    code="pipeline.training.specs:inference_code",
    on_demand=True,
    single_recipe=True,
)
GENERATE = Stage(
    name="generate",
    run="pipeline.extras.generate.stage:run",
    folder="data/generated/{name}",
    settings=("augment", "gan", "generate", "split"),
    inputs={
        "download": (),
        "prepare": ("train_images.npy", "train_labels.npy", "validation_rows.npy"),
        "augment": ("images.npy", "labels.npy"),
    },
    outputs=("samples.npy", "labels.npy", "generate.json", "generate.html", *captions.GENERATED),
    code="pipeline.extras.generate.judge:code",
    on_demand=True,
    ensures_inputs=True,
    recipes="gans",
    single_recipe=True,
    uses_device=True,
    check="pipeline.extras.generate.training:check_memory",
    resumes=True,
    stale_reason="pipeline.extras.generate.judge:why_stale",
)
NOTEBOOK = Stage(
    name="notebook",
    run="pipeline.extras.notebook.command:run",
    settings=("notebook",),
    on_demand=True,
    refuses_folders=True,
    default_recipe="quick",
    publishes_itself=True,
)
EXTRAS = {stage.name: stage for stage in (EXPLORE, INSPECT, RECOGNIZE, EXPORT, GENERATE, NOTEBOOK, COMPARE)}
