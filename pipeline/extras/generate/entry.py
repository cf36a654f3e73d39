"""The entry of generate in the table of the extras: a conditional GAN."""

from pipeline.reports import captions
from pipeline.workflow.stage import Stage

STAGE = Stage(
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
