"""The training of a classifier: arrays in, the weights of the epoch that is kept and its figures out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.dataset.views import apply_view
from pipeline.errors import StageError
from pipeline.nn.batches import selected_row
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.networks import trained_part
from pipeline.nn.precision import describe_settings, keeps_gpu_busy
from pipeline.nn.trainer import FitOptions, LabelledImages, fit
from pipeline.nn.transfer import TransferNetwork, hash_weights
from pipeline.shapes import Float16, UInt8
from pipeline.training.arrays import TrainingArrays
from pipeline.training.imagenet import input_name
from pipeline.training.specs import NetworkSpec
from pipeline.training.task import RECORD, Session, TrainingOutcome
from pipeline.workflow import store


def fit_network(session: Session, spec: NetworkSpec, arrays: TrainingArrays) -> TrainingOutcome:
    """Train the network of a spec in the session's folder.

    arrays: with features in place of images if the network has a frozen extractor.
    """
    model, train, device = spec.model, spec.train, session.device
    checkpoint, data = session.load_checkpoint(), arrays.split(spec.fold)
    path = Path(session.task.initial_weights) if session.task.initial_weights else None
    if path and path.exists() and store.sha256(path) != dict(spec.data).get(input_name(model)):  # on a cluster
        raise StageError(f"{path}: the file differs from that of the machine that started this training")
    images = None if model.has_frozen_extractor else torch.from_numpy(data.images)
    network = make_initial_network(model, train.seed, path, images)
    trained = trained_part(network)  # shares its parameters with the network
    validation = test = None
    if data.validation_images is not None and data.validation_labels is not None:
        validation = as_labelled_images(data.validation_images, data.validation_labels, device, model.view)
    if data.test_images is not None and data.test_labels is not None:
        test = as_labelled_images(data.test_images, data.test_labels, device, model.view)
    training = as_labelled_images(data.images, data.labels, device, model.view)
    options = FitOptions(train, spec.affine, device, session.progress_bar)
    result = fit(trained, training, validation, options, test, checkpoint, session.after_epoch)
    kept = selected_row(result.history, train.checkpoint_selection)
    metadata = {
        "model": model.model_dump(mode="json", exclude={"weights_file"}),
        "precision": train.precision,
        "epoch": int(kept["epoch"]),
        "checkpoint_selection": train.checkpoint_selection,
        "fit_all": train.fit_all,
        "fold": spec.fold,
        "seed": train.seed,
    }
    numbers: dict[str, Any] = {
        "precision": train.precision,
        "kept_epoch": int(kept["epoch"]),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    } | {name: value for name, value in kept.items() if name.startswith("validation")}
    if isinstance(network, TransferNetwork) and model.has_frozen_extractor:
        numbers["extractor"] = hash_weights(network.extractor)  # of the features in data/features/
    settings = describe_settings(
        device, train.precision, keeps_gpu_busy(trained, train.batch_size), train.deterministic
    )
    state_dict = network.state_dict() | result.state_dict
    outcome = session.outcome(state_dict, metadata, result.history, numbers, settings)
    if result.record:
        outcome.files[RECORD] = json.dumps({"rows": result.record}).encode()
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
