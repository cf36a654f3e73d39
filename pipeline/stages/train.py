"""train: fit the recipe's network, or the members of its ensemble, each keeping a checkpoint of its last epoch."""

import dataclasses
import json
import os
import time

import numpy as np
import torch

from pipeline import artifacts
from pipeline.models import require_trainable, save_members, save_weights
from pipeline.pictures import training as pictures
from pipeline.recording import ROWS
from pipeline.stages import comparing, fitting, members, tracking

DRAWING = 0.1  # the most that drawing the curves may take of the time: each epoch of 1.1 s is drawn, in 0.11 s


def space(job):
    """Bytes that `run` writes at most: weights, and checkpoints of five times their size, old and new."""
    planned = members.plan(job.settings)
    names = [member.model for member in planned] or [job.settings.model.name]
    batch = job.settings.train.batch
    networks = [require_trainable(dataclasses.replace(job.settings.model, name=name), batch) for name in names]
    sizes = [4 * sum(part.numel() for part in network.parameters()) for network in networks]
    at_once = sorted(sizes)[-(os.cpu_count() or 1) :]
    losses = 8 * len(at_once) * len(np.load(job.paths["augment/labels.npy"], mmap_mode="r"))
    history = 1024 * job.settings.train.epochs * len(sizes)
    if job.settings.train.record:  # at most a KB a layer, in two checkpoints and for itself
        history += 3 * 1024 * (ROWS + 2) * sum(len(part.shape) > 1 for part in networks[0].parameters())
    if job.key["stage"] == comparing.RUN:  # in two checkpoints, and for itself
        test = job.paths.get("prepare/test_images.npy", job.paths["prepare/validation_rows.npy"])
        history += 3 * job.settings.train.epochs * len(np.load(test, mmap_mode="r"))
    return (2 * sum(sizes) if planned else 0) + 11 * sum(at_once) + losses + history


def run(job):
    images = np.load(job.paths["augment/images.npy"], mmap_mode="c")
    labels = np.load(job.paths["augment/labels.npy"])
    planned = members.plan(job.settings)
    if planned:
        numbers, content, histories = _ensemble(job, planned, images, labels)
    else:
        numbers, content, histories = _single(job, images, labels)
    job.context["threads"] = job.settings.ensemble.threads if planned else torch.get_num_threads()
    rows = [{**({"member": name} if planned else {}), **row} for name, history in histories.items() for row in history]
    artifacts.write(job.folder / "history.csv", fitting.as_csv(rows))
    artifacts.write(job.folder / "curves.png", pictures.curves(list(histories.values()), job.settings.train.keep))
    artifacts.write(job.folder / "weights.safetensors", content)
    return numbers


def _held(job):
    """Images and labels of the validation rows, or None where they are trained on."""
    if job.settings.train.fit_all:
        return None
    rows = np.load(job.paths["prepare/validation_rows.npy"])
    return tuple(np.load(job.paths[f"prepare/train_{name}.npy"], mmap_mode="r")[rows] for name in ("images", "labels"))


def _single(job, images, labels):
    settings, call, tracker = job.settings.train, job.call, tracking.Tracker(job.call)
    began, drawing = time.monotonic(), 0.0

    def look(history):
        nonlocal drawing
        tracker.show(history)
        now = time.monotonic()
        if drawing <= DRAWING * (now - began) and not compared:
            artifacts.write(job.folder / "curves.png", pictures.curves([history], settings.keep))
            drawing += time.monotonic() - now

    held, watched = _held(job), None
    compared = job.key["stage"] == comparing.RUN
    if compared:
        test = job.paths.get("prepare/test_images.npy")
        watched = np.load(test) if test else held[0]
    fitted = fitting.fit(
        job.folder,
        job.key,
        (images, labels),
        held,
        job.settings.model,
        settings,
        job.settings.affine,
        call.device,
        lambda text: call.say(f"train: {text}"),
        lambda text: call.note(f"train: {text}"),
        look,
        not compared,  # several are trained side by side, and no one of them has the screen
        watched,
    )
    if compared:
        made = np.stack(fitted.answers)
        artifacts.write_array(job.folder / comparing.ANSWERS, made.shape, made.dtype, [made])
    if fitted.record:
        artifacts.write(job.folder / "record.json", json.dumps({"rows": fitted.record}).encode())
    kept = fitting.kept_row(fitted.history, settings.keep)
    numbers = {
        "precision": fitted.about["precision"],
        "kept_epoch": fitted.about["epoch"],
        "parameters": sum(tensor.numel() for name, tensor in fitted.tensors.items() if not _is_statistic(name)),
    } | {name: value for name, value in kept.items() if name.startswith("validation")}
    job.context["training_seconds"] = round(fitted.seconds, 3)
    return numbers, save_weights(fitted.tensors, fitted.about), {"": fitted.history}


def _ensemble(job, planned, images, labels):
    folds, began = job.paths.get("prepare/folds.npy"), time.monotonic()
    held = np.load(folds) if folds else _held(job)
    tracker, trained = tracking.Tracker(job.call), []

    def done(name, history):
        tracker.show(history, name)
        trained.append(history)
        picture = pictures.curves(trained, job.settings.train.keep)
        artifacts.write(job.folder / "curves.png", picture)

    units = members.train(job, planned, (images, labels, held), job.call.engine, done)
    job.context["training_seconds"] = round(time.monotonic() - began, 3)  # of this call, several at once
    histories, weights = {}, {}  # of all, in their order
    for member, folder, _ in units:
        histories[member.name] = fitting.from_csv((folder / "history.csv").read_bytes())
        weights[member.name] = ({"fold": member.fold, "seed": member.seed}, folder / "weights.safetensors")
    names = {member.name: {"folder": folder.name, **numbers} for member, folder, numbers in units}
    return {"members": names}, save_members(weights), histories


def _is_statistic(name):
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked", "mean", "deviation")
