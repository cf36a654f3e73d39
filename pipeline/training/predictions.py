"""Predictions of a recipe's networks: for the test rows, and for the training rows that they did not see."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.nn.inference import predict_probabilities
from pipeline.nn.networks import LoadedNetwork
from pipeline.nn.transfer import Head, TransferNetwork
from pipeline.recipes.settings import Model, Predict
from pipeline.shapes import Float32, Shaped
from pipeline.training.arrays import read_images
from pipeline.training.features import ensure_features
from pipeline.training.held_out import HeldOutPredictions, load_training_rows, predict_held_out
from pipeline.workflow.context import StageContext


def predict_test_rows(
    context: StageContext, networks: Sequence[LoadedNetwork], predict: Predict
) -> Float32[np.ndarray, "n 10"]:
    """The mean probabilities of all networks for the rows of test.csv."""
    probabilities = []
    for network in networks:
        predictor, inputs = load_inputs(context, network, "test")
        probabilities.append(predict_probabilities(predictor, torch.from_numpy(inputs), predict, context.run.device))
    mean: Float32[np.ndarray, "n 10"] = np.mean(probabilities, axis=0)
    return mean


def predict_training_rows(
    context: StageContext, networks: Sequence[LoadedNetwork], predict: Predict
) -> HeldOutPredictions:
    """The mean probabilities for each row of train.csv, by the networks that were not trained on it."""
    inputs = functools.partial(load_inputs, context, table="train")
    return predict_held_out(networks, load_training_rows(context.files), predict, context.run.device, inputs)


def load_inputs(
    context: StageContext, loaded: LoadedNetwork, table: str
) -> tuple[LoadedNetwork, Shaped[np.ndarray, "n ..."]]:
    """A network and the images of a table; of a network with a frozen extractor, its head and their features."""
    model = Model(**loaded.metadata["model"])
    if not model.has_frozen_extractor:
        return loaded, read_images(context.files, f"prepare/{table}_images.npy")
    assert isinstance(loaded.network, TransferNetwork)
    features = ensure_features(context, loaded.network, model, loaded.metadata["precision"], table)
    return LoadedNetwork(Head(loaded.network), loaded.metadata), features
