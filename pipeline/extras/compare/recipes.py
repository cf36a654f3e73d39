"""The recipes of a comparison: which take part, and what they are trained on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.dataset import files
from pipeline.errors import StageError
from pipeline.recipes.settings import MAX_NETWORKS
from pipeline.training import imagenet
from pipeline.workflow.engine import Workflow
from pipeline.workflow.joint import JointWorkflow
from pipeline.workflow.stage import Stage

MAX_TITLE = 80  # characters of a comparison's name


def join(stage: Stage, names: Sequence[str], runs: Sequence[Workflow], download: bool) -> JointWorkflow:
    """The run of a comparison. Raises StageError for recipes that cannot be compared.

    Without the weights that it starts from, a recipe is left out; MissingWeights is raised if it was named itself and
    they may be downloaded.
    """
    first = runs[0]
    _check([run.recipe.name for run in runs], runs)
    left_out = imagenet.find_unavailable([run.recipe for run in runs], names, first.workspace, download)
    members = [run for run in runs if run.recipe.name not in left_out]
    if not members and download:
        raise StageError(f"--recipe {','.join(names)}: {next(iter(left_out.values()))}")
    for name, reason in left_out.items() if download else ():
        first.say(f"compare: {name} is left out: {reason}")
    for assignment in first.assignments if download else ():
        if assignment.startswith("predict."):
            first.say(f"compare: {assignment} has no effect: networks are compared without shifted copies")
    members = [_adapt_to_data(run) for run in members or runs]
    joint = JointWorkflow.of(stage, members, _make_title(names, first.assignments), names)
    return replace(joint, left_out=tuple(left_out))


def _check(names: Sequence[str], runs: Sequence[Workflow]) -> None:
    for run in runs:
        if run.recipe.train.record:
            raise StageError(f"--stage compare: {run.name}: omit train.record, which is for --stage inspect")
        if names.count(run.name) > 1:
            raise StageError(f"--stage compare: two recipes have the name {run.name}: rename the file of one")
    n_networks = sum(run.recipe.n_networks * run.recipe.compare.seeds for run in runs)
    if n_networks > MAX_NETWORKS:
        raise StageError(f"--stage compare: {n_networks:,} networks, more than {MAX_NETWORKS:,}: set compare.seeds")


def _adapt_to_data(run: Workflow) -> Workflow:
    """The recipe as the comparison trains it: on all rows if test rows have labels and the last epoch is kept."""
    train, manifest = run.recipe.train, run.manifest("download") or {"outputs": ()}
    has_test_labels = files.TEST_LABELS in manifest["outputs"]
    fit_all = has_test_labels and train.checkpoint_selection == "last" and not run.recipe.split.folds
    return replace(run, recipe=run.recipe.replace(train=train.replace(fit_all=fit_all)))


def _make_title(names: Sequence[str], assignments: Sequence[str]) -> str:
    """The folder name of a comparison. It does not depend on the number of seeds."""
    assignments = [assignment for assignment in assignments if not assignment.startswith("compare.")]
    title = "+".join(Path(name).stem if name.endswith(".toml") else name.replace("/", "-") for name in names)
    if not assignments and len(title) <= MAX_TITLE:
        return title
    text = "\n".join([",".join(names), *sorted(assignments)])
    return f"{title[:MAX_TITLE]}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"
