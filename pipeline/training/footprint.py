"""The memory that a training needs at least."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import UserError
from pipeline.machine import devices
from pipeline.nn.networks import require_trainable, trained_part
from pipeline.nn.trainer import CPU_MICRO_BATCH
from pipeline.recipes.settings import Model, Recipe, Train


def least_memory(model: Model, train: Train, device: str, n_rows: int = 1) -> int:
    """Bytes that a training needs at least on this machine: weights, and on a CPU gradients and a batch's activations.

    n_rows: the number of training rows. Raises ConfigError as `require_trainable` does.
    """
    network = require_trainable(model, train.batch_size)
    trained, sizes = trained_part(network), list[int]()
    n_bytes: int = 4 * sum(parameter.numel() for parameter in network.parameters())
    if device != "cpu":
        return n_bytes
    has_batch_norm = False
    for module in trained.modules():
        has_batch_norm |= isinstance(module, _BatchNorm)
        if isinstance(module, nn.Conv2d | nn.Linear):  # whose outputs are kept for the gradients
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    with torch.device("meta"):
        network.eval()(torch.zeros(1, 1, 28, 28))
    rows = min(n_rows, train.batch_size, n_rows if has_batch_norm else CPU_MICRO_BATCH)
    activation_bytes = 4 if train.precision == "fp32" else 2
    n_bytes += 4 * sum(parameter.numel() for parameter in trained.parameters())
    return n_bytes + rows * activation_bytes * sum(sizes)


def check_networks(recipe: Recipe, device: str) -> None:
    """Raise UserError if a recipe's networks cannot be trained here: better now than after hours of training.

    Their layers do not fit each other, or they need more memory than this machine has.
    """
    for model in recipe.models:
        try:
            devices.require_memory(least_memory(model, recipe.train, device), f"a network ({model.name})")
        except UserError as error:
            raise type(error)(f"{recipe.name}: {error}") from None
