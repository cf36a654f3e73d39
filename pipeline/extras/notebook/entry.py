"""The entry of notebook in the table of the extras: the pipeline as a Kaggle Notebook."""

from pipeline.workflow.stage import Command

ENTRY = Command(
    name="notebook", run="pipeline.extras.notebook.command:make_notebook", default_recipe="quick", can_blend=True
)
