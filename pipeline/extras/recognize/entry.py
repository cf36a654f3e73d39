"""The entry of recognize in the table of the extras: the digits in image files."""

from pipeline.workflow.stage import Command

ENTRY = Command(
    name="recognize",
    run="pipeline.extras.recognize.command:recognize",
    default_recipe="quick",  # it has a pretrained network
    uses_device=True,
)
