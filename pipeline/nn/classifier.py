"""The training of a classifier: arrays in, the weights of the epoch that is kept and its figures out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pipeline.dataset.training_arrays import TrainingArrays
from pipeline.dataset.views import apply_view
from pipeline.nn.epochs import selected_row
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.models import trained_part
from pipeline.nn.training_loop import Checkpoint, FitOptions, FitResult, LabelledImages, fit
from pipeline.settings import Model
from pipeline.shapes import Float16, UInt8

History = list[dict[str, float]]


@dataclass
class TrainedClassifier:
    """A trained network, and what is recorded of it."""

    network: nn.Module  # with the weights of the last step
    state_dict: dict[str, Tensor]  # of the epoch that is kept
    metadata: dict[str, Any]  # of the weights file
    numbers: dict[str, Any]  # of the manifest
    result: FitResult


def fit_classifier(
    model: Model,
    arrays: TrainingArrays,
    options: FitOptions,
    fold: int | None,
    weights_file: Path | None,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[Checkpoint], None],
) -> TrainedClassifier:
    """Train a network that classifies digits.

    arrays: with features in place of images if the network has a frozen extractor.
    fold: the fold that is held out.
    weights_file: with ImageNet's weights, if the network starts from them.
    checkpoint, on_epoch: of `fit`.
    """
    data, train, view = arrays.split(fold), options.train, model.view
    images = None if model.has_frozen_extractor else torch.from_numpy(data.images)
    network = make_initial_network(model, train.seed, weights_file, images)
    validation = test = None
    if data.validation_images is not None and data.validation_labels is not None:
        validation = as_labelled_images(data.validation_images, data.validation_labels, options.device, view)
    if data.test_images is not None and data.test_labels is not None:
        test = as_labelled_images(data.test_images, data.test_labels, options.device, view)
    training = as_labelled_images(data.images, data.labels, options.device, view)
    # The head shares its parameters with the network.
    result = fit(trained_part(network), training, validation, options, test, checkpoint, on_epoch)
    kept = selected_row(result.history, train.checkpoint_selection)
    metadata = {
        "model": model.model_dump(mode="json", exclude={"weights_file"}),
        "precision": train.precision,
        "epoch": int(kept["epoch"]),
        "checkpoint_selection": train.checkpoint_selection,
        "fit_all": train.fit_all,
        "fold": fold,
        "seed": train.seed,
    }
    numbers = {
        "precision": train.precision,
        "kept_epoch": int(kept["epoch"]),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    } | {name: value for name, value in kept.items() if name.startswith("validation")}
    return TrainedClassifier(network, network.state_dict() | result.state_dict, metadata, numbers, result)


def as_labelled_images(
    images: UInt8[np.ndarray, "n 28 28"] | Float16[np.ndarray, "n ..."],
    labels: UInt8[np.ndarray, " n"],
    device: str,
    view: str = "plain",
) -> LabelledImages:
    """Images, with the view, or features, and labels as tensors on the device."""
    tensors = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    labelled = LabelledImages(*(tensor.to(device) for tensor in tensors))
    if labelled.images.is_floating_point():
        return labelled
    return labelled._replace(images=apply_view(labelled.images, view))


def history_to_csv(history: History) -> bytes:
    """The rows of a history as a CSV file."""
    text: str = pd.DataFrame(history).to_csv(index=False, lineterminator="\n")
    return text.encode()


def history_from_csv(content: bytes) -> History:
    """The rows of a CSV file that `history_to_csv` wrote. Raises ValueError, TypeError or csv.Error for another."""
    rows = csv.DictReader(io.StringIO(content.decode()))  # pandas.read_csv before version 3 loses the last digit
    return [
        {name: int(text) if text.isdecimal() else float(text) for name, text in row.items() if text} for row in rows
    ]
