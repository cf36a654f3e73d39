"""The training of a classifier: arrays in, the weights of the epoch that is kept and its figures out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dataset.views import apply_view
from pipeline.errors import StageError
from pipeline.nn.batches import selected_row
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.networks import trained_part
from pipeline.nn.precision import describe_settings, keeps_gpu_busy
from pipeline.nn.trainer import Checkpoint, FitOptions, FitResult, LabelledImages, fit
from pipeline.nn.transfer import TransferNetwork, hash_weights
from pipeline.recipes.settings import Model
from pipeline.shapes import Float16, UInt8
from pipeline.training.arrays import TrainingArrays
from pipeline.training.imagenet import input_name
from pipeline.training.specs import NetworkSpec
from pipeline.training.task import RECORD, Session, TrainingOutcome
from pipeline.workflow import store


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


def fit_network(session: Session, spec: NetworkSpec, arrays: TrainingArrays) -> TrainingOutcome:
    """Train the network of a spec in the session's folder."""
    train, checkpoint = spec.train, session.load_checkpoint()
    path = Path(session.task.initial_weights) if session.task.initial_weights else None
    if path and path.exists() and store.sha256(path) != dict(spec.data).get(input_name(spec.model)):  # on a cluster
        raise StageError(f"{path}: the file differs from that of the machine that started this training")
    options = FitOptions(train, spec.affine, session.device, session.progress_bar)
    trained = fit_classifier(spec.model, arrays, options, spec.fold, path, checkpoint, session.after_epoch)
    numbers, record = trained.numbers, trained.result.record
    if isinstance(trained.network, TransferNetwork) and spec.model.has_frozen_extractor:
        numbers["extractor"] = hash_weights(trained.network.extractor)  # of the features in data/features/
    is_large = keeps_gpu_busy(trained_part(trained.network), train.batch_size)
    settings = describe_settings(session.device, train.precision, is_large, train.deterministic)
    outcome = session.outcome(trained.state_dict, trained.metadata, trained.result.history, numbers, settings)
    if record:
        outcome.files[RECORD] = json.dumps({"rows": record}).encode()
    return outcome


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
