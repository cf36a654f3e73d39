"""Predictions of a recipe's networks: for the test rows, and for the training rows that they did not see."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.arrays import load_training_rows
from pipeline.declarations import StageContext, StageInputs
from pipeline.features import load_inputs
from pipeline.settings import Predict

if TYPE_CHECKING:
    import numpy as np

    from pipeline.nn.held_out import HeldOutPredictions
    from pipeline.nn.models import LoadedNetwork
    from pipeline.shapes import Float32


def predict_test_rows(
    context: StageContext, part: StageInputs, networks: Sequence[LoadedNetwork], predict: Predict
) -> Float32[np.ndarray, "n 10"]:
    """The mean probabilities of all networks for the rows of test.csv."""
    import numpy as np
    import torch

    from pipeline.nn.inference import predict_probabilities

    probabilities = []
    for network in networks:
        predictor, inputs = load_inputs(context, part, network, "test")
        probabilities.append(
            predict_probabilities(predictor, torch.from_numpy(inputs), predict, context.workflow.device)
        )
    mean: Float32[np.ndarray, "n 10"] = np.mean(probabilities, axis=0)
    return mean


def predict_training_rows(
    context: StageContext, part: StageInputs, networks: Sequence[LoadedNetwork], predict: Predict
) -> HeldOutPredictions:
    """The mean probabilities for each row of train.csv, by the networks that were not trained on it."""
    from pipeline.nn.held_out import predict_held_out

    inputs = functools.partial(load_inputs, context, part, table="train")
    return predict_held_out(networks, load_training_rows(part), predict, context.workflow.device, inputs)
