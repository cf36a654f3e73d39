"""blend: the mean of several recipes' probabilities, as one submission with the accuracy on the rows all hold out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from pipeline.dataset.submission import write_submission
from pipeline.errors import StageError
from pipeline.metrics.classification import wilson_interval
from pipeline.metrics.expected_score import estimate_score
from pipeline.recipes import config
from pipeline.shapes import Float32, Int64
from pipeline.workflow import schemas, store
from pipeline.workflow.context import StageContext
from pipeline.workflow.engine import Workflow
from pipeline.workflow.joint import JointWorkflow
from pipeline.workflow.stage import Stage


def join(stage: Stage, names: Sequence[str], runs: Sequence[Workflow], download: bool) -> JointWorkflow:
    """The run of a blend."""
    recipes = [run.name for run in runs]
    if len(runs) < 2:
        raise StageError(f"--stage {stage.name}: name several recipes, as in --recipe quick,standard")
    if len(set(recipes)) < len(recipes):
        raise StageError(f"--recipe {','.join(names)}: two recipes have the same name: rename the file of one")
    title = "+".join(recipes)
    if len(title) > config.MAX_NAME:
        title = f"{runs[0].name[:100]}+{len(runs) - 1}-{hashlib.sha256(title.encode()).hexdigest()[:12]}"
    return JointWorkflow.of(stage, runs, title, [run.recipe_argument for run in runs])


def run(context: StageContext) -> dict[str, Any]:
    probabilities = np.mean([_read(each, "predict/probabilities.npy", None) for each in context.members], axis=0)
    evaluation = _evaluate(context.members)
    expected = estimate_score(evaluation, len(probabilities))
    weights = [each.hashes["train/weights.safetensors"] for each in context.members]
    assert isinstance(context.run, JointWorkflow)
    recipes = [member.recipe for member in context.run.members]
    write_submission(context, probabilities, recipes, weights, evaluation, expected)
    if not evaluation["rows"]:
        context.say(evaluation["why_none"])
    return {"rows": len(probabilities)}


def _read(inputs: StageContext, name: str, n_rows: int | None) -> Float32[np.ndarray, "n 10"]:
    return store.read_array(inputs.files[name], "float32", (n_rows, 10))


def _evaluate(members: Sequence[StageContext]) -> dict[str, Any]:
    """The accuracy of the mean on the rows that every recipe holds out, as in metrics.json."""
    metrics = [store.require_json(each.files["evaluate/metrics.json"], schemas.Metrics) for each in members]
    nothing = {"why_not_measured": "a blend has no measured accuracy"}
    if all_rows := [each.recipe.name for each, own in zip(members, metrics, strict=True) if not own["rows"]]:
        verb = "were" if len(all_rows) > 1 else "was"
        reason = f"{', '.join(all_rows)} {verb} trained on all rows, so no row is held out by every recipe"
        return {"rows": 0, "accuracy": None, "why_none": reason, **nothing}
    labels = store.read_array(members[0].files["prepare/train_labels.npy"], "uint8", (None,), below=10)
    held_out: list[Int64[np.ndarray, " n"]] = [
        store.read_array(each.files["evaluate/rows.npy"], "int64", (None,), below=len(labels)) for each in members
    ]
    rows = reduce(np.intersect1d, held_out)
    if not len(rows):
        return {"rows": 0, "accuracy": None, "why_none": "no row is held out by every recipe", **nothing}
    probabilities = [
        _read(each, "evaluate/probabilities.npy", len(own))[np.searchsorted(own, rows)]
        for each, own in zip(members, held_out, strict=True)
    ]
    n_correct = int((np.mean(probabilities, axis=0).argmax(1) == labels[rows]).sum())
    n_networks = sum(len(each.manifests["train"]["numbers"].get("networks", ())) for each in members)
    return {
        "rows": len(rows),
        "accuracy": n_correct / len(rows),
        "interval_95": wilson_interval(n_correct, len(rows)),
        "chosen_on_these_rows": any(own["chosen_on_these_rows"] for own in metrics),
        "rows_left_out": len(reduce(np.union1d, held_out)) - len(rows),
        "rests_on": f"{len(rows):,} held-out rows: the mean of {len(members)} recipes ({n_networks} networks), each "
        "row predicted by the networks that were not trained on it",
        **nothing,
    }
