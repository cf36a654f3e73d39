"""What the function of a stage gets, for tests that call parts of it."""

from pathlib import Path

from pipeline.workflow.context import StageContext
from pipeline.workflow.engine import Workflow
from pipeline.workflow.stage import Stage


def make_context(recipe, files=None, hashes=None, manifests=None):
    """The context of a stage of this recipe with these inputs, which writes nowhere."""
    stage, nowhere = Stage("stage", "tests:run", "nowhere"), Path("nowhere")
    run = Workflow({}, nowhere, recipe)
    return StageContext(run, stage, recipe, files or {}, hashes or {}, manifests or {}, nowhere, nowhere, {}, {})
