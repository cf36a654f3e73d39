"""The networks of an ensemble: each a unit of its own under data/members/, trained side by side through joblib.

A member that is there and was made from these settings and inputs is kept. The processes that train (here, or on a
Dask cluster) return weights, and the parent publishes them.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pipeline import artifacts
from pipeline.settings import as_plain
from pipeline.stages import workers
from pipeline.stages.engine import StageError

FOLDER = "data/members"
LOG = "log.txt"
NAMES = "members.json"  # in the run's folder while it trains: the names of its members' folders
PATIENCE = 10  # seconds that a Dask scheduler has to answer
OUTPUTS = ("weights.safetensors", "history.csv")


@dataclass(frozen=True)
class Member:
    model: str
    view: str
    seed: int
    fold: int | None  # the one that is held out

    @property
    def name(self):
        view = "" if self.view == "plain" else f"-{self.view}"
        return f"{self.model}{view}-seed{self.seed}" + ("" if self.fold is None else f"-fold{self.fold}")


class ParentGone(RuntimeError):
    """Nobody waits for this training any more."""


def plan(settings):
    """The members that a recipe's settings ask for, in order; [] where it is one network, held in no ensemble."""
    models = settings.ensemble.models or (settings.model.name,)
    views = settings.ensemble.views or (settings.model.view,)
    folds = range(settings.split.folds) if settings.split.folds else (None,)
    seeds = range(settings.train.seed, settings.train.seed + settings.ensemble.seeds)
    made = [Member(*one, seed, fold) for seed in seeds for one in product(models, views) for fold in folds]
    return made if len(made) > 1 or settings.ensemble.models or settings.ensemble.views else []


def places(workspace, recipe):
    """Where a recipe's members stand or will stand: a list of folders."""
    return [_place(workspace, member, _settings(recipe, member)) for member in plan(recipe)]


def train(job, members, arrays, engine, done):
    """Train the members that are missing; returns each one's folder and numbers.

    arrays: the training images and labels of all variants, and the validation images and labels, or None, or, with
        folds, the fold of each row.
    done: called with the name and the history of each that is trained.
    """
    from tqdm import tqdm  # not above: `--status` and `--clean` come here too

    from pipeline.stages import fitting

    base, todo, places = job.call.workspace, [], {}
    for member in members:
        settings = _settings(job.settings, member)
        key = {"stage": "member", "version": job.key["version"], "settings": settings, "inputs": _inputs(job)}
        place = places[member] = _place(base, member, settings).resolve()
        artifacts.restore(place)
        manifest, _ = artifacts.read_manifest(place)
        same = manifest and all(manifest[name] == value for name, value in key.items())
        if same and not job.call.force and not artifacts.changed_outputs(place, manifest):
            continue
        partial, _ = artifacts.beside(place)
        if job.call.force or artifacts.read_json(partial / artifacts.STARTED) != key:
            artifacts.begin(place)
            artifacts.write_json(partial / artifacts.STARTED, key)
        todo.append((member, place, key))
    artifacts.write_json(job.folder / NAMES, {"folders": sorted(place.name for place in places.values())})
    if len(todo) < len(members):
        job.call.say(f"train: {len(members) - len(todo)} of {len(members)} members are there")
    tasks = [
        Task(
            dataclasses.replace(job.settings.model, name=member.model, view=member.view),
            dataclasses.replace(job.settings.train, seed=member.seed),
            job.settings.affine,
            member.fold,
            job.call.device if job.call.engine == "local" else job.call.asked,
            job.settings.ensemble.threads,
            str(artifacts.beside(place)[0]),
            str(base / "data"),
            key,
            os.getpid(),
        )
        for member, place, key in todo
    ]
    waiting = dict(zip((task.folder for task in tasks), todo, strict=True))
    with tqdm(total=len(tasks), desc="train", unit="member", disable=None) as bar:
        for folder, result in _run(tasks, arrays, job, engine):
            member, place, key = waiting[folder]
            _publish(place, key, result, job)
            done(member.name, fitting.from_csv(result["history.csv"]))
            numbers = result["numbers"]
            shown = "".join(f", {name.replace('_', ' ')} {numbers[name]:.4f}" for name in SHOWN if name in numbers)
            job.call.say(f"train: {member.name} done in {result['seconds']:.0f} s{shown}")
            bar.update()
    return [(member, places[member], artifacts.read_manifest(places[member])[0]["numbers"]) for member in members]


SHOWN = ("validation_accuracy",)


@dataclass(frozen=True)
class Task:
    """What a process needs to train one member, beside the arrays."""

    model: object
    train: object
    affine: object
    fold: int | None
    device: str  # or "auto": what the machine that trains has
    threads: int
    folder: str  # the unit's .partial, where this process can see it
    locks: str  # the folder of the GPUs' locks
    key: dict
    parent: int  # process id


def _run(tasks, arrays, job, engine):
    """Pairs of a task's folder and its result, as they come."""
    import joblib

    if not tasks:
        return
    options, count = workers.options(), workers.count(job.call.device, job.settings.ensemble.threads)
    if engine.startswith("dask="):
        options, count = _dask(engine, arrays), -1
    with joblib.parallel_config(**options), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)  # an idle one, as asked for
        parallel = joblib.Parallel(min(count, len(tasks)), return_as="generator_unordered", batch_size=1)
        yield from parallel(joblib.delayed(_train)(task, *arrays) for task in tasks)


def _dask(engine, arrays):
    """joblib's options for the Dask cluster of an engine "dask=tcp://HOST:PORT"."""
    try:
        from distributed import Client
    except ImportError:
        raise StageError("--engine dask=...: install it first: pip install -r requirements/dask.txt") from None
    address = engine.removeprefix("dask=")
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=True)
    except (OSError, ValueError, TimeoutError) as error:
        raise StageError(f"--engine {engine}: no Dask scheduler answers there ({type(error).__name__})") from None
    if sum(client.ncores().values()) < 2:  # joblib would train here instead
        raise StageError(f"--engine {engine}: one worker thread there or none: start more with `dask worker {address}`")
    # On every worker: one that dies takes nothing along that the others need.
    return {"backend": "dask", "scatter": [array for array in arrays if array is not None]}


def _train(task, images, labels, held):
    """Train one member: its folder, and what the parent publishes. Runs in a process of its own, on any machine."""
    folder = Path(task.folder)
    if os.getpid() != task.parent and not _dask_worker():
        workers.end_after(task.parent)
    with contextlib.ExitStack() as stack:
        stack.enter_context(workers.busy)
        if artifacts.read_json(folder / artifacts.STARTED) == task.key:
            lock = artifacts.Lock(folder.with_suffix(".lock"))
            lock.acquire({"stage": "train", "since": time.strftime("%Y-%m-%d %H:%M:%S")}, wait=True)
            stack.callback(lock.release)
        else:  # no disk in common with the parent
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            return task.folder, _fit(task, folder, images, labels, held)
        except ParentGone:
            if _dask_worker():
                raise
            os._exit(1)  # joblib's worker would live on for a while


def _fit(task, folder, images, labels, held):
    from pipeline.models import save_weights
    from pipeline.stages import engine, fitting, machine

    def note(text):
        artifacts.write(folder / LOG, f"{time.strftime('%H:%M:%S')} {text}\n".encode(), append=True)

    device = engine.choose_device(task.device)
    locks = None if _dask_worker() else Path(task.locks)  # a Dask worker's GPU is set by whoever starts it
    with workers.settled(device, task.threads, locks):
        train, validation = _parts(task.fold, images, labels, held)
        fitted = fitting.fit(
            folder, task.key, train, validation, task.model, task.train, task.affine, device, note, note,
            look=lambda history: _stop_if_alone(task.parent), bar=False,
        )  # fmt: skip
    kept = fitting.kept_row(fitted.history, task.train.keep)
    return {
        "weights.safetensors": save_weights(fitted.tensors, fitted.about),
        "history.csv": fitting.as_csv(fitted.history),
        LOG: (folder / LOG).read_bytes(),
        "numbers": {"precision": fitted.about["precision"], "kept_epoch": fitted.about["epoch"]}
        | {name: value for name, value in kept.items() if name.startswith("validation")},
        "seconds": fitted.seconds,
        "context": machine.here(device),
    }


def _parts(fold, images, labels, held):
    """What one member trains on and what it is measured on, from the arrays of all (see `train`)."""
    import numpy as np

    if fold is None:
        return (images, labels), held
    out = held == fold
    kept = np.tile(~out, len(labels) // len(out))
    return (images[kept], labels[kept]), (images[: len(out)][out], labels[: len(out)][out])  # the first are originals


def _stop_if_alone(parent):
    """Raise ParentGone where the process that asked for this training is gone, or has given it up."""
    if worker := _dask_worker():
        task = worker.state.tasks.get(worker.get_current_task())
        gone = task is None or task.state in ("cancelled", "resumed")
    else:
        gone = parent not in (os.getpid(), os.getppid())
    if gone:
        raise ParentGone("the training's parent is gone")


def _dask_worker():
    """The Dask worker that this thread belongs to, or None."""
    if "distributed" in sys.modules:
        with contextlib.suppress(ValueError):
            return sys.modules["distributed"].get_worker()
    return None


def _publish(place, key, result, job):
    partial, _ = artifacts.beside(place)
    for name in (*OUTPUTS, LOG):
        artifacts.write(partial / name, result[name])
    job.check_inputs()
    context = {**copy.deepcopy(job.context), **result["context"], "seconds": round(result["seconds"], 3)}
    artifacts.write_manifest(partial, key, OUTPUTS, result["numbers"], context)
    for path in partial.iterdir():
        if path.name not in (*OUTPUTS, LOG, artifacts.MANIFEST, artifacts.CONTEXT):
            path.unlink()
    artifacts.publish(place)


def _settings(recipe, member):
    """What a member's weights depend on; neither the other members nor their number."""
    settings = {name: as_plain(getattr(recipe, name)) for name in ("affine", "augment", "model", "split", "train")}
    settings["model"] |= {"name": member.model, "view": member.view}
    settings["train"]["seed"] = member.seed
    settings["ensemble"] = {"threads": recipe.ensemble.threads}
    settings["split"]["fold"] = member.fold
    return settings


def _inputs(job):
    wanted = ("prepare/", "augment/")
    return {name: digest for name, digest in job.key["inputs"].items() if name.startswith(wanted)}


def _place(workspace, member, settings):
    text = json.dumps(settings, sort_keys=True)
    return workspace / FOLDER / f"{member.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
