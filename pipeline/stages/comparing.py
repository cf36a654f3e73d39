"""Comparisons (`--stage compare`): each recipe trained with several seeds, a run of its own each, then the table.

A run stands in data/runs/<recipe>/seed<k>/, under a digest of the settings where `--set` changed some that it reads.
Where the source has test labels, a recipe that keeps its last epoch trains on all rows of train.csv and is measured on
test.csv, as published figures are; else it trains on the split's training rows and is measured on the validation rows.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from pipeline import artifacts, recipe, sources
from pipeline.settings import Recipe, RecipeError
from pipeline.stages import STAGES, engine, members, workers
from pipeline.stages.engine import StageError, digest

BEFORE = ("download", "prepare", "augment")  # what a run needs, which recipes share
RUN, ANSWERS = "compared", "answers.npy"
TABLE, MARKDOWN, PAGE = "table.csv", "table.md", "compare.html"
SEEDS = 5
LONGEST = 80  # characters of a comparison's name


@dataclass(frozen=True)
class Run:
    """One recipe with one seed."""

    recipe: Recipe
    seed: int
    suffix: str  # of the folder, where --set changed what a run reads
    workspace: Path
    device: str

    @property
    def place(self):
        return self.call().place(_stages(self.recipe)[RUN])

    def call(self, **about):
        """The call in which the stage RUN is this one's training."""
        train = dataclasses.replace(self.recipe.train, seed=self.seed)
        name = f"{self.recipe.name}/seed{self.seed}{self.suffix}"
        own = dataclasses.replace(self.recipe, name=name, train=train)
        return engine.Call(_stages(own), self.workspace, own, device=self.device, **about)

    def state(self, known=None):
        """("fresh" | "stale" | "missing", why)"""
        call = self.call()
        return engine.state(call, call.stages[RUN], known)

    def can_resume(self):
        call = self.call()
        return engine.can_resume(call, call.stages[RUN])


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
            raise StageError(
                f"--stage compare: {one.name} trains several networks (split.folds, ensemble), and a run here is one; "
                "--ensemble averages a recipe's seeds"
            )
        if one.train.record:
            raise StageError(f"--stage compare: {one.name}: leave train.record out, which is for `inspect`")
        if [each.name for each in found].count(one.name) > 1:
            raise StageError(f"--stage compare: two recipes are called {one.name}: rename the file of one")
    return found


def suffixes(chosen):
    """By recipe, what its runs' folders end in: a digest where `--set` changed what a run reads."""
    reads = STAGES["train"].reads
    plain = {one.name: digest(recipe.load(one.file or one.name), *reads) for one in chosen}
    return {one.name: "" if digest(one, *reads) == plain[one.name] else f"-{digest(one, *reads)}" for one in chosen}


def require_networks(chosen):
    """Raise RecipeError where a recipe's layers do not fit each other: better now than after hours of training."""
    from pipeline.models import require_trainable

    for one in chosen:
        try:
            require_trainable(one.model, one.train.batch)
        except RecipeError as error:
            raise RecipeError(f"{one.name}: {error}") from None


def as_trained(one, test_labels):
    """The recipe as a comparison trains it: on all rows where test rows have labels, unless it chooses an epoch by some
    of them; else with validation rows held out.
    """
    fit_all = test_labels and one.train.keep == "last"
    return dataclasses.replace(one, train=dataclasses.replace(one.train, fit_all=fit_all))


def has_test_labels(call):
    """Whether what `download` published has them."""
    manifest, _ = artifacts.read_manifest(call.place(STAGES["download"]))
    return bool(manifest) and sources.TEST_LABELS in manifest["outputs"]


FOLDER = re.compile(r"seed(\d+)(-[0-9a-f]{12})?(?:\.partial)?")  # a run's, below data/runs/<recipe>/


def status(call, known):
    """A line for each run of the call's recipe that a comparison left, with these settings.

    known: the states of the call's stages, as `engine.state` keeps them.
    """
    shared = {name: known[name] for name in ("download", "prepare") if name in known}
    chosen, others = as_trained(call.recipe, has_test_labels(call)), set()
    suffix, seeds = suffixes([call.recipe])[call.recipe.name], set()
    for path in (call.workspace / "data/runs" / chosen.name).glob("seed*"):
        if path.is_dir() and (match := FOLDER.fullmatch(path.name)):
            if (match[2] or "") == suffix:
                seeds.add(int(match[1]))
            else:
                others.add(path.name.removesuffix(".partial"))
    for seed in sorted(seeds):
        how, why = Run(chosen, seed, suffix, call.workspace, call.device).state(dict(shared))
        yield f"{f'seed {seed}':<10}{how:<9}{why}".rstrip()
    if others:
        runs = "comparison run uses" if len(others) == 1 else "comparison runs use"
        yield f"{len(others)} more {runs} different settings (--set)"


def resumable(workspace, path, assignments):
    """Whether a comparison with some recipe's settings, plain or with `assignments`, would resume the run in `path`."""
    started, match = artifacts.read_json(path / artifacts.STARTED), FOLDER.fullmatch(path.name)
    if not started or not match:
        return False
    context = artifacts.read_json(path / artifacts.CONTEXT) or {}
    name = context.get("recipe_file") or path.parent.relative_to(workspace / "data/runs").as_posix()
    for given in ((), assignments):
        try:
            one = recipe.load(name, given)
            suffix = suffixes([one])[one.name]
            for fit_all in (True, False):
                chosen = dataclasses.replace(one, train=dataclasses.replace(one.train, fit_all=fit_all))
                run = Run(chosen, int(match[1]), suffix, workspace, "cpu")
                if artifacts.beside(run.place)[0] == path.resolve() and run.can_resume():
                    return True
        except (RecipeError, KeyError, TypeError, AttributeError):  # a recipe that is gone, a file that is damaged
            continue
    return False


def title(names, assignments):
    """What the comparison's folder is called."""
    parts = [Path(name).stem if name.endswith(".toml") else name.replace("/", "-") for name in names.split(",")]
    made = "+".join(parts)
    if not assignments and len(made) <= LONGEST:
        return made
    text = "\n".join([names, *sorted(assignments)])
    return f"{made[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run(calls, suffixes, seeds, ensemble, title, log):
    """Prepare, train and score; returns the folder of the table. calls: one for each recipe."""
    from pipeline.stages import compare  # not above: it imports torch

    engine.bring_about(calls[0], STAGES["download"])
    labelled = has_test_labels(calls[0])
    base = {}
    for call in calls:
        call.recipe = as_trained(call.recipe, labelled)
        base[call.recipe] = call
        for name in BEFORE[1:]:
            if engine.state(call, STAGES[name])[0] != "fresh":
                engine.bring_about(call, STAGES[name])
    runs = [
        Run(one, one.train.seed + k, suffixes[one.name], call.workspace, call.device)
        for one, call in base.items()
        for k in range(seeds)
    ]
    calls[0].tell("compare")
    failed = train(runs, calls[0].force, calls[0].say, log)
    return compare.run(base, runs, failed, ensemble, calls[0].workspace / "data/compare" / title, calls[0].say)


def train(runs, force, say, log):
    """Train what is missing or stale, several side by side; returns, of runs that failed, why."""
    import joblib

    for run in runs:
        artifacts.restore(run.place)
    todo = [run for run in runs if force or run.state()[0] != "fresh"]
    if len(todo) < len(runs):
        say(f"compare: {len(runs) - len(todo)} of {len(runs)} runs are there")
    failed = {}
    if not todo:
        return failed
    count = min(len(todo), workers.count(todo[0].device, max(run.recipe.ensemble.threads for run in todo)))
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


def _train(run, force, log, parent):
    """Train and publish one run, in a process of its own; the run, the seconds it took and why it failed, or ""."""

    def note(text):
        line = f"{time.strftime('%H:%M:%S')} {run.recipe.name}, seed {run.seed}: {text}\n"
        artifacts.write(Path(log), line.encode(), append=True)

    if os.getpid() != parent:
        workers.end_after(parent)
    began, call = time.monotonic(), run.call(force=force, say=note, note=note)
    lock = artifacts.Lock(run.place.with_name(f"{run.place.name}.lock"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(workers.busy)
        # One whose parent was killed may be on its way out.
        lock.acquire({"stage": RUN, "since": time.strftime("%Y-%m-%d %H:%M:%S")}, wait=True)
        stack.callback(lock.release)
        stack.enter_context(workers.settled(run.device, run.recipe.ensemble.threads, run.workspace / "data"))
        try:
            engine.run_stage(call, call.stages[RUN])
        except FloatingPointError as error:  # a learning rate that was too large is a result too
            return run, time.monotonic() - began, str(error)
    return run, time.monotonic() - began, ""
