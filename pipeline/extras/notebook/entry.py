"""The entry of notebook in the table of the extras: the pipeline as a Kaggle Notebook."""

from pipeline.workflow.stage import Stage

STAGE = Stage(
    name="notebook",
    run="pipeline.extras.notebook.command:run",
    settings=("notebook",),
    on_demand=True,
    refuses_folders=True,
    default_recipe="quick",
    publishes_itself=True,
)
