"""One network's training in a folder of its own, from its checkpoint on: what `train` does once, or for each member."""

import copy
import hashlib
import io
import json
import math
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from pipeline import artifacts, training
from pipeline.models import make
from pipeline.stages.engine import StageError
from pipeline.views import view

CHECKPOINT = "checkpoint.pt"
DIGEST = 32  # bytes: the SHA-256 of what follows them
SAVE = 2  # seconds between two savings of a checkpoint: where an epoch takes less, one in some epochs is saved


@dataclass
class Fitted:
    """What a training gives."""

    tensors: dict  # by name, those to keep
    about: dict  # what they are of
    history: list
    answers: list  # arrays (n,), uint8, one an epoch
    record: list  # rows of `Recorder`
    seconds: float  # of training with the validation after each epoch, those before a stop included


def fit(
    folder,
    key,
    train,
    validation,
    model,
    settings,
    affine,
    device,
    say,
    note,
    look=lambda history: None,
    bar=True,
    watched=None,
):
    """Train the network that `model` describes; returns a Fitted.

    folder: where the checkpoint lies or will lie, and `history.csv`.
    key: what settings and inputs the training is of: a checkpoint of another is not gone on from.
    train, validation: pairs of numpy arrays, uint8 images (n, 28, 28) and labels (n,); validation may be None.
    say, note: take a line for the user, and a line for the log.
    watched: images (n, 28, 28), uint8, for each epoch's answers.
    look: called with the history after each epoch; what it raises stops the training, whose last epoch is saved.
    """

    def on_device(images, labels):
        shown = view(torch.from_numpy(images).to(device), model.view)
        return shown, torch.from_numpy(labels.astype(np.int64)).to(device)

    made_for = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    checkpoint = _load_checkpoint(folder / CHECKPOINT, made_for)
    precision = checkpoint["precision"] if checkpoint else training.choose_precision(settings, device)
    if checkpoint:
        say(f"going on after epoch {checkpoint['epoch']}")
    training.seed_everything(settings.seed)
    network = make(model, torch.from_numpy(train[0]))
    saved, unsaved = -math.inf, None
    began = time.monotonic() - (checkpoint["seconds"] if checkpoint else 0)

    def save(checkpoint):
        nonlocal saved, unsaved
        content = io.BytesIO()
        more = {"precision": precision, "made_for": made_for, "seconds": time.monotonic() - began}
        torch.save({**checkpoint, **more}, content)
        content = content.getvalue()
        artifacts.write(folder / CHECKPOINT, [hashlib.sha256(content).digest(), content])
        artifacts.write(folder / "history.csv", as_csv(checkpoint["history"]))
        saved, unsaved = time.monotonic(), None

    def after_epoch(checkpoint):
        nonlocal unsaved
        if time.monotonic() - saved > SAVE:
            save(checkpoint)
        else:
            # Its tensors go on changing; the rows in these lists do not, and copying them would take long in the end.
            unsaved = {
                name: list(value) if name in ("history", "answers", "record") else copy.deepcopy(value)
                for name, value in checkpoint.items()
            }
        note(", ".join(f"{name} {value:.6g}" for name, value in checkpoint["history"][-1].items()))
        look(checkpoint["history"])

    held = validation and on_device(*validation)
    if watched is not None:
        same = validation and watched is validation[0]
        watched = held[0] if same else view(torch.from_numpy(watched).to(device), model.view)
    try:
        state, history, answers, record = training.fit(
            network,
            on_device(*train),
            held,
            settings,
            affine,
            device,
            precision,
            checkpoint,
            after_epoch,
            bar,
            watched,
        )
    except BaseException:  # stopped by a signal, for one
        if unsaved:
            save(unsaved)
        raise
    about = {
        "model": vars(model),
        "precision": precision,
        "epoch": kept_row(history, settings.keep)["epoch"],
        "keep": settings.keep,
        "fit_all": settings.fit_all,
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    answers = [one.numpy() for one in answers]
    return Fitted(tensors, about, history, answers, record, time.monotonic() - began)


def kept_row(history, keep):
    """The row of a history whose weights are kept."""
    return min(history, key=lambda row: row["validation_loss"]) if keep == "best" else history[-1]


def as_csv(history):
    """A history's rows as the bytes of a CSV."""
    return pd.DataFrame(history).to_csv(index=False, lineterminator="\n").encode()


def from_csv(content):
    """The rows of what `as_csv` gave."""
    return pd.read_csv(io.BytesIO(content)).to_dict("records")


def _load_checkpoint(path, made_for):
    """What the last finished epoch left, or None."""
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        digest, content = content[:DIGEST], content[DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("it is not what was written")
        checkpoint = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # of many kinds
        raise StageError(
            f"{path}: the checkpoint cannot be read ({error}): delete it to start this training over"
        ) from None
    return checkpoint if checkpoint.get("made_for") == made_for else None
