"""train: fit the recipe's network, keeping a checkpoint of the last epoch."""

import copy
import io
import math
import time

import numpy as np
import pandas as pd
import torch

from pipeline import artifacts, pictures, training
from pipeline.models import MODELS, save_weights
from pipeline.stages.engine import StageError

CHECKPOINT = "checkpoint.pt"
SAVE = 2  # seconds between two savings of a checkpoint: where an epoch takes less, one in some epochs is saved
REDRAW = 10  # seconds between two drawings of the curves, which take 0.2 s each


def run(job):
    device, settings = job.call.device, job.settings.train
    checkpoint = _load_checkpoint(job.folder / CHECKPOINT)
    precision = checkpoint["precision"] if checkpoint else training.choose_precision(settings, device)
    if checkpoint:
        job.call.say(f"train: going on after epoch {checkpoint['epoch']}")

    images = np.load(job.paths["augment/images.npy"], mmap_mode="c")
    labels = np.load(job.paths["augment/labels.npy"])

    def on_device(images, labels):
        return torch.from_numpy(images).to(device), torch.from_numpy(labels.astype(np.int64)).to(device)

    validation = None
    if not settings.fit_all:
        rows = np.load(job.paths["prepare/validation_rows.npy"])
        held = (np.load(job.paths[f"prepare/train_{name}.npy"], mmap_mode="r")[rows] for name in ("images", "labels"))
        validation = on_device(*held)

    training.seed_everything(settings.seed)
    network = MODELS[job.settings.model.name](job.settings.model)
    drawn, saved, unsaved = time.monotonic(), -math.inf, None

    def save(checkpoint):
        nonlocal saved, unsaved
        content = io.BytesIO()
        torch.save({**checkpoint, "precision": precision}, content)
        artifacts.write(job.folder / CHECKPOINT, content.getvalue())
        artifacts.write(job.folder / "history.csv", _as_csv(checkpoint["history"]))
        saved, unsaved = time.monotonic(), None

    def after_epoch(checkpoint):
        nonlocal drawn, unsaved
        if time.monotonic() - saved > SAVE:
            save(checkpoint)
        else:
            unsaved = copy.deepcopy(checkpoint)  # its tensors go on changing
        job.call.note("train: " + ", ".join(f"{name} {value:.6g}" for name, value in checkpoint["history"][-1].items()))
        if time.monotonic() - drawn > REDRAW:
            artifacts.write(job.folder / "curves.png", pictures.curves(checkpoint["history"], settings.keep))
            drawn = time.monotonic()

    began = time.monotonic()
    try:
        state, history = training.fit(
            network,
            on_device(images, labels),
            validation,
            settings,
            job.settings.affine,
            device,
            precision,
            checkpoint,
            after_epoch,
        )
    except BaseException:  # stopped by a signal, for one
        if unsaved:
            save(unsaved)
        raise
    job.context["training_seconds"] = round(time.monotonic() - began, 3)
    job.context["threads"] = torch.get_num_threads()
    artifacts.write(job.folder / "history.csv", _as_csv(history))
    artifacts.write(job.folder / "curves.png", pictures.curves(history, settings.keep))
    kept = min(history, key=lambda row: row["validation_loss"]) if settings.keep == "best" else history[-1]
    about = {
        "model": vars(job.settings.model),
        "precision": precision,
        "epoch": kept["epoch"],
        "keep": settings.keep,
        "fit_all": settings.fit_all,
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    artifacts.write(job.folder / "weights.safetensors", save_weights(tensors, about))
    return {
        "precision": precision,
        "kept_epoch": kept["epoch"],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    } | {name: value for name, value in kept.items() if name.startswith("validation")}


def _load_checkpoint(path):
    """What the last finished epoch left, or None."""
    if not path.exists():
        return None
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # of many kinds, for a file that is no checkpoint
        raise StageError(
            f"{path}: the checkpoint cannot be read ({type(error).__name__}): --force starts the training over"
        ) from None


def _as_csv(history):
    return pd.DataFrame(history).to_csv(index=False, lineterminator="\n").encode()
