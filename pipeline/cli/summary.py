"""The last lines of a run: accuracy, expected score, submission, and what to do next."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.dataset import sources
from pipeline.errors import display_path
from pipeline.kaggle import competition
from pipeline.kaggle.client import submit_command
from pipeline.kaggle.competition import TEST_ROWS
from pipeline.recipes import config
from pipeline.workflow import schemas, store
from pipeline.workflow.engine import Workflow

# From the zip to the submission, for the recipes that are recommended.
DURATIONS = {
    "standard": "4 minutes on 2 cores, 11 s on an H200",
    "best": "72 minutes on 2 cores, 70 s on an H200",
}
RULE = "*" * 78
SAMPLE_WARNING = f"""{RULE}
THIS IS SAMPLE DATA: 5,000 digits of MNIST. Training on the competition's 42,000 gives a
higher score. A submission made from the sample cannot be sent to Kaggle.
For the competition's data, {sources.HOW_TO_GET_REAL_DATA}
{RULE}"""


def show_result(workflow: Workflow) -> None:
    """Show the accuracy, the expected score, the submission and how to send it."""
    folder = workflow.published_dir("predict")
    receipt = store.require_json(folder / "submission.json", schemas.Receipt)
    for line in [*_accuracy_lines(receipt), *_submission_lines(receipt, display_path(folder / "submission.csv"))]:
        workflow.say(line)
    # On the sample, the warning that follows says how to get the competition's data.
    if receipt["can_be_submitted"] and (advice := list(_next_steps(workflow, receipt))):
        workflow.say(f"next: {'; '.join(advice)}")


def _next_steps(workflow: Workflow, receipt: dict[str, Any]) -> Iterator[str]:
    """The recommended recipes whose recorded accuracy is higher than the expected score, and pictures of a network."""
    expected, better = (receipt["expected_score"] or {}).get("estimate", 0.0), []
    for name, duration in DURATIONS.items():
        accuracy = config.load_recipe(name).measured.accuracy
        if name != workflow.name and accuracy > expected:
            better.append(f"--recipe {name} (about {accuracy:.4f}; {duration})")
    if better:
        yield f"for a higher score, try {' or '.join(better)}"
    if len(workflow.recipes) == 1 and "inspect" in workflow.stages:
        yield f"for pictures of this network, run --stage inspect{workflow.arguments}"


def _accuracy_lines(receipt: dict[str, Any]) -> list[str]:
    validation, expected = receipt["validation"], receipt["expected_score"]
    if not validation["rows"]:
        lines = [f"validation accuracy: none, {validation['why_none']}"]
    else:
        low, high = validation["interval_95"]
        chosen = "; the epoch was chosen on these rows" if validation["chosen_on_these_rows"] else ""
        left_out = validation["rows_left_out"]
        if left_out:
            chosen += f"; {left_out:,} rows are left out, since not every recipe holds them out"
        interval = f"95% interval {low:.4f} to {high:.4f}, {validation['rows']:,} rows{chosen}"
        lines = [f"validation accuracy {validation['accuracy']:.4f} ({interval})"]
    if expected:
        low, high = expected["interval_95"]
        lines.append(f"expected score {expected['estimate']:.4f} (95% prediction interval: {low:.4f} to {high:.4f})")
        lines.append(f"it is based on {expected['rests_on']}")
    else:
        lines.append(f"expected score: none, {receipt['why_no_expected_score']}")
    if receipt["test_score"] is not None:
        n_rows = receipt["rows"]
        lines.append(f"score on the {n_rows:,} test rows, whose labels the source has: {receipt['test_score']:.4f}")
    return lines


def _submission_lines(receipt: dict[str, Any], path: str) -> list[str]:
    lines = [f"submission: {path} ({receipt['rows']:,} rows)"]
    source = receipt["source"]
    if receipt["can_be_submitted"]:
        lines.append(f"send it: {submit_command(path, receipt)}")
    elif source in competition.SOURCES:
        lines.append(f"it cannot be sent: the competition's test set has {TEST_ROWS:,} rows")
    elif source != "sample":
        lines.append(f"it was made from {source} data, not from the competition's, and cannot be sent to Kaggle")
    return lines


def warn_about_sample(workspace: Path, say: Callable[[str], None]) -> None:
    """Show a warning if the data are the sample."""
    manifest, _ = store.read_manifest(workspace / "data/raw")
    if manifest and manifest["numbers"].get("source") == "sample":
        for line in SAMPLE_WARNING.splitlines():
            say(line)
