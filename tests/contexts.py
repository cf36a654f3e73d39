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


def only(recipe, names):
    """A recipe that has, beside its name, only these sections ("train") and settings ("train.fit_all")."""

    def with_attributes(model, values):
        instance = type(model).model_construct()
        object.__setattr__(instance, "__dict__", dict(values))
        return instance

    sections = {"name": recipe.name, "file": recipe.file, "about": recipe.about}
    for section, _, field in (name.partition(".") for name in names):
        values = getattr(recipe, section)
        if field:
            values = with_attributes(values, {**dict(sections.get(section, ())), field: getattr(values, field)})
        sections[section] = values
    return with_attributes(recipe, sections)
