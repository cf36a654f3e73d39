"""Predictions for training rows by the networks that did not see them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.nn.inference import predict_probabilities
from pipeline.nn.networks import LoadedNetwork
from pipeline.recipes.settings import Predict
from pipeline.shapes import Bool, Float32, Int64, Shaped, UInt8
from pipeline.training.arrays import read_digits, read_rows
from pipeline.workflow import store


@dataclass
class TrainingRows:
    """The rows of train.csv, and which of them are held out."""

    images: UInt8[np.ndarray, "n 28 28"]
    labels: UInt8[np.ndarray, " n"]
    validation_rows: Int64[np.ndarray, " v"]
    folds: UInt8[np.ndarray, " n"] | None  # the fold that holds out each row

    def unseen_by(self, metadata: dict[str, Any]) -> Bool[np.ndarray, " n"]:
        """The rows that a network with this metadata was not trained on."""
        if metadata["fit_all"]:
            return np.zeros(len(self.labels), bool)
        unseen: Bool[np.ndarray, " n"] = np.isin(np.arange(len(self.labels)), self.validation_rows)
        return unseen if self.folds is None else np.asarray(self.folds == metadata["fold"])


def load_training_rows(files: Mapping[str, Path]) -> TrainingRows:
    """The rows of train.csv and which of them a recipe holds out, from the outputs of prepare."""
    images, labels = read_digits(files)
    path = files.get("prepare/folds.npy")
    folds = store.read_array(path, "uint8", (len(labels),), below=100) if path else None
    return TrainingRows(images, labels, read_rows(files, len(labels)), folds)


@dataclass
class HeldOutPredictions:
    """The mean predictions of several networks, each for the rows that it did not see."""

    probabilities: Float32[np.ndarray, "n 10"]  # 0 for a row that all networks saw
    n_networks: Int64[np.ndarray, " n"]  # how many networks predicted a row
    metadata: list[dict[str, Any]]  # of each network
    accuracies: list[float]  # of each network that held out rows, on these rows


def predict_held_out(
    networks: Iterable[LoadedNetwork],
    rows: TrainingRows,
    predict: Predict,
    device: str,
    load_inputs: Callable[[LoadedNetwork], tuple[LoadedNetwork, Shaped[np.ndarray, "n ..."]]] | None = None,
) -> HeldOutPredictions:
    """Predict each row with the networks that were not trained on it.

    load_inputs: returns what predicts in place of a network, and its input for each row; by default the network itself
        and `rows.images`.
    """
    total, counts = np.zeros((len(rows.labels), 10), np.float32), np.zeros(len(rows.labels), np.int64)
    metadata, accuracies = [], []
    for loaded in networks:
        metadata.append(loaded.metadata)
        unseen = rows.unseen_by(loaded.metadata)
        if unseen.any():
            predictor, inputs = load_inputs(loaded) if load_inputs else (loaded, rows.images)
            probabilities = predict_probabilities(predictor, torch.from_numpy(inputs[unseen]), predict, device)
            total[unseen] += probabilities
            counts[unseen] += 1
            accuracies.append(float(np.mean(probabilities.argmax(1) == rows.labels[unseen])))
    means = total / np.maximum(counts, 1).astype(np.float32)[:, None]
    return HeldOutPredictions(means, counts, metadata, accuracies)
