"""The last lines of a run: accuracy, expected score, submission, and what to do next."""

import shlex
from collections.abc import Iterator
from typing import Any

from pipeline.errors import display_path
from pipeline.kaggle import competition
from pipeline.kaggle.client import submit_command
from pipeline.kaggle.competition import TEST_ROWS
from pipeline.recipes import config
from pipeline.workflow import schemas, store
from pipeline.workflow.engine import Workflow
from pipeline.workflow.joint import JointWorkflow

# From the zip to the submission, for the recipes that are recommended.
DURATIONS = {
    "standard": "4 minutes on 2 cores, 11 s on an H200",
    "best": "72 minutes on 2 cores, 70 s on an H200",
}
SAMPLE_NOTE = (
    "sample data: 5,000 digits of MNIST. The competition's 42,000 rows give a higher score, and only they can be "
    f"submitted: download them from {competition.PAGE}, then --data ZIP, or --data kaggle"
)


def show_result(workflow: Workflow) -> None:
    """Show the accuracy, the expected score, the submission, how to send it, pictures, and what to do next."""
    folder = workflow.published_dir("predict")
    receipt = store.require_json(folder / "submission.json", schemas.Receipt)
    for label, text in _lines(workflow, receipt, display_path(folder / "submission.csv")):
        workflow.report(label, text)


def _lines(workflow: Workflow, receipt: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """The lines at the end of a run, each with its label."""
    runs = workflow.members if isinstance(workflow, JointWorkflow) else (workflow,)
    shifted = any(len(run.recipe.predict.shifts) > 1 for run in runs)
    yield from _accuracy_lines(receipt, ", with shifted copies" if shifted else "")
    yield "file", f"{path} ({receipt['rows']:,} rows)"
    yield from _submission_lines(receipt, path, f"python run_pipeline.py --stage submit{workflow.arguments}")
    if not isinstance(workflow, JointWorkflow):
        yield from _picture_lines(workflow, receipt)
    if receipt["expected_score"] or len(runs) == 1:
        yield from _next_steps(workflow, receipt, {run.name for run in runs})


def _accuracy_lines(receipt: dict[str, Any], how: str) -> Iterator[tuple[str, str]]:
    """The accuracy and the expected score. how: the predictions were made."""
    validation, expected = receipt["validation"], receipt["expected_score"]
    if not validation["rows"]:
        yield "accuracy", f"none: {validation['why_none']}"
    else:
        low, high = validation["interval_95"]
        details = f"95% interval {low:.4f} to {high:.4f}"
        details += "; the epoch was chosen on these rows" if validation["chosen_on_these_rows"] else ""
        if left_out := validation["rows_left_out"]:
            details += f"; {left_out:,} rows are left out, since not every recipe holds them out"
        yield "accuracy", f"{validation['accuracy']:.4f} on {validation['rows']:,} held-out rows{how} ({details})"
    if expected:
        low, high = expected["interval_95"]
        where = "on Kaggle" if receipt["source"] in competition.SOURCES else "on new rows"
        yield "expected", f"{expected['estimate']:.4f} {where} (95% prediction interval {low:.4f} to {high:.4f})"
        yield "", f"based on {expected['rests_on']}"
    else:
        yield "expected", f"none: {receipt['why_no_expected_score']}"
    if receipt["test_score"] is not None:
        yield "score", f"{receipt['test_score']:.4f} on the {receipt['rows']:,} test rows, whose labels the source has"


def _submission_lines(receipt: dict[str, Any], path: str, command: str) -> Iterator[tuple[str, str]]:
    source = receipt["source"]
    if receipt["can_be_submitted"]:
        yield "submit", command
        yield "or", submit_command(path, receipt)
    elif source in competition.SOURCES:
        yield "submit", f"not possible: the competition's test set has {TEST_ROWS:,} rows"
    elif source != "sample":
        yield "submit", f"not possible: it was made from {source} data, not from the competition's"


def _picture_lines(workflow: Workflow, receipt: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The pictures of the run, and the command that makes more."""
    stages = ("train", "evaluate") if receipt["validation"]["rows"] else ("train",)
    yield "pictures", " ".join(display_path(workflow.published_dir(stage) / "*.png") for stage in stages)
    if "inspect" in workflow.stages:
        yield "more", f"python run_pipeline.py --stage inspect{workflow.arguments}"


def _next_steps(workflow: Workflow, receipt: dict[str, Any], used: set[str]) -> Iterator[tuple[str, str]]:
    """The recommended recipes, except those used, whose measured accuracy is higher than the expected score."""
    expected = (receipt["expected_score"] or {}).get("estimate", 0.0)
    for name in DURATIONS:
        measured = config.read_measured().get(name)
        if measured and name not in used and measured.accuracy > expected:
            yield "next", recommend(workflow, name, receipt["source"] in competition.SOURCES)


def recommend(workflow: Workflow, name: str, has_competition_data: bool = True) -> str:
    """The command that runs a recommended recipe, with its measured accuracy and the time that it takes."""
    where, options = "", workflow.options
    if not has_competition_data:
        where = " on the competition's data"
        options = f"{options.replace(f' --data {shlex.quote(workflow.data)}', '')} --data digit-recognizer.zip"
    about = f"about {config.read_measured()[name].accuracy:.4f}{where}; {DURATIONS[name]}"
    return f"python run_pipeline.py --stage all --recipe {name}{options}  # {about}"


def warn_about_sample(workflow: Workflow) -> None:
    """Say so if the data are the sample."""
    manifest = workflow.manifest("download")
    if manifest and manifest["numbers"].get("source") == "sample":
        workflow.report("note", SAMPLE_NOTE)
