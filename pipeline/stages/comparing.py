"""Comparisons (`--stage compare`): each recipe trained with several seeds, a run of its own each, then the table.

A run stands in data/runs/<recipe>/seed<k>/, under a digest of the settings where `--set` changed some. Where the
source has test labels, a recipe that keeps its last epoch trains on all rows of train.csv and is measured on test.csv,
as published figures are; else it trains on the split's training rows and is measured on the validation rows.
"""

import dataclasses
import hashlib
import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifacts, recipe, sources
from pipeline.settings import Recipe
from pipeline.stages import STAGES, engine, members, workers
from pipeline.stages.engine import StageError, digest

BEFORE = ("download", "prepare", "augment")  # what a run needs, which recipes share
RUN, ANSWERS = "compared", "answers.npy"
TABLE, MARKDOWN, PAGE = "table.csv", "table.md", "compare.html"
SEEDS = 3


@dataclass(frozen=True)
class Run:
    """One recipe with one seed."""

    recipe: Recipe
    seed: int
    changed: bool  # by --set
    workspace: Path
    device: str

    @property
    def place(self):
        return self.call().place(_stages(self.recipe)[RUN])

    def call(self, **about):
        """The call in which the stage RUN is this one's training."""
        train = dataclasses.replace(self.recipe.train, seed=self.seed)
        name = f"{self.recipe.name}/seed{self.seed}"
        if self.changed:
            name += f"-{digest(self.recipe, *STAGES['train'].reads)}"
        own = dataclasses.replace(self.recipe, name=name, train=train)
        return engine.Call(_stages(own), self.workspace, own, device=self.device, **about)


def _stages(one):
    train = STAGES["train"]
    prepared = (*train.needs["prepare"], *(("test_images.npy",) if one.train.fit_all else ()))
    run = dataclasses.replace(
        train,
        name=RUN,
        module="train",
        folder=lambda own: f"data/runs/{own.name}",
        needs={**train.needs, "prepare": prepared},
        outputs=(*train.outputs, ANSWERS),
    )
    return {**{name: STAGES[name] for name in BEFORE}, RUN: run}


def recipes(names, assignments):
    """The recipes that are compared, in order. Raises StageError where one cannot be."""
    found = [recipe.load(name, assignments) for name in recipe.expand(names)]
    for one in found:
        if members.plan(one):
            raise StageError(f"--stage compare: {one.name} is an ensemble; --ensemble averages a recipe's seeds")
    return found


def on_test_rows(one):
    """The recipe as it is trained where test rows have labels: on all rows, if it chooses no epoch by some of them."""
    train = one.train if one.train.keep == "best" else dataclasses.replace(one.train, fit_all=True)
    return dataclasses.replace(one, train=train)


def has_test_labels(workspace):
    """Whether what `download` published has them."""
    manifest, _ = artifacts.read_manifest(workspace / "data/raw")
    return bool(manifest) and sources.TEST_LABELS in manifest["outputs"]


def train(runs, force, say, log):
    """Train what is missing or stale, several side by side; returns, of runs that failed, why."""
    import joblib

    todo = [run for run in runs if force or engine.state(run.call(), run.call().stages[RUN])[0] != "fresh"]
    if len(todo) < len(runs):
        say(f"compare: {len(runs) - len(todo)} of {len(runs)} runs are there")
    failed = {}
    if not todo:
        return failed
    count = min(len(todo), workers.count(todo[0].device, todo[0].recipe.ensemble.threads))
    with joblib.parallel_config(**workers.options()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        parallel = joblib.Parallel(count, return_as="generator_unordered", batch_size=1)
        tasks = (joblib.delayed(_train)(run, force, str(log), os.getpid()) for run in todo)
        for number, (run, seconds, why) in enumerate(parallel(tasks), 1):
            shown = why or f"done in {seconds:.0f} s"
            say(f"compare: {number} of {len(todo)}: {run.recipe.name}, seed {run.seed}: {shown}")
            if why:
                failed[run] = why
    return failed


def score(base, runs, failed, ensemble, title, say):
    """Leave the table and the page; see `compare`, which imports torch, as this module does not."""
    from pipeline.stages import compare

    return compare.run(base, runs, failed, ensemble, title, say)


def title(names, assignments):
    """What the comparison's folder is called."""
    made = names.replace("/", "-").replace(",", "+")
    if not assignments:
        return made
    return f"{made}-{hashlib.sha256(json.dumps(sorted(assignments)).encode()).hexdigest()[:12]}"


def _train(run, force, log, parent):
    """Train and publish one run, in a process of its own; the run, the seconds it took and why it failed, or ""."""
    import torch

    def note(text):
        line = f"{time.strftime('%H:%M:%S')} {run.recipe.name}, seed {run.seed}: {text}\n"
        artifacts.write(Path(log), line.encode(), append=True)

    if os.getpid() != parent:
        workers.end_after(parent)
    began, threads = time.monotonic(), torch.get_num_threads()
    call = run.call(force=force, say=note, note=note)
    with workers.busy:
        try:
            if run.device == "cpu":
                torch.set_num_threads(run.recipe.ensemble.threads)
            artifacts.restore(call.place(call.stages[RUN]))
            engine.run_stage(call, call.stages[RUN])
        except FloatingPointError as error:  # a learning rate that was too large is a result too
            return run, time.monotonic() - began, str(error)
        finally:
            torch.set_num_threads(threads)
    return run, time.monotonic() - began, ""
