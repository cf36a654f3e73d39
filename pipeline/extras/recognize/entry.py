"""The entry of recognize in the table of the extras: the digits in image files."""

from pipeline.workflow.stage import Stage

STAGE = Stage(
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
