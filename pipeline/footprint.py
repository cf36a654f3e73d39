"""The memory that a training needs: on a GPU, measured; on a CPU, a lower limit."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from pipeline import devices
from pipeline.devices import is_out_of_memory, out_of_memory, release_memory
from pipeline.errors import UserError
from pipeline.nn.gan_training import least_bytes
from pipeline.nn.inference import BATCH_SIZES, predict_logits
from pipeline.nn.models import make_network, require_trainable, trained_part
from pipeline.nn.precision import keeps_gpu_busy, library_settings
from pipeline.nn.training_loop import CPU_MICRO_BATCH, STEPS_BEFORE_GRAPH, FitOptions, LabelledImages, Trainer
from pipeline.settings import Affine, Model, Recipe, Train
from pipeline.specs import NetworkSpec, models

if TYPE_CHECKING:
    from pipeline.dataset.training_arrays import TrainingArrays
    from pipeline.networks import Request


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


def require_memory(requests: Iterable[Request]) -> None:
    """Raise StageError if one of the trainings needs more memory than this machine has; they are on the CPU."""
    estimate = functools.cache(least_memory)
    for request in requests:
        if isinstance(request.spec, NetworkSpec):
            train = request.spec.train.replace(seed=0)
            needed = estimate(request.spec.model, train, "cpu", len(request.arrays.labels))
            devices.require_memory(needed, str(request))


def check_networks(recipes: Iterable[Recipe], device: str) -> None:
    """Raise UserError if a recipe's networks cannot be trained here: better now than after hours of training.

    Their layers do not fit each other, or they need more memory than this machine has.
    """
    for recipe in recipes:
        if recipe.has_gan:
            devices.require_memory(least_bytes(recipe.gan, recipe.generate.samples), recipe.name)
            continue
        for model in models(recipe):
            try:
                devices.require_memory(least_memory(model, recipe.train, device), f"a network ({model.name})")
            except UserError as error:
                raise type(error)(f"{recipe.name}: {error}") from None


def measure_footprint(model: Model, train: Train, arrays: TrainingArrays, device: str = "cuda") -> int:
    """Bytes of PyTorch's memory on the current GPU that a training needs, measured in a few steps and one prediction.

    Raises StageError if the memory is too small.
    """
    release_memory()
    torch.cuda.reset_peak_memory_stats()
    try:
        copies = _take_steps(model, train, arrays, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory("train") from None
    step = torch.cuda.max_memory_reserved()
    release_memory()  # for the processes that train
    # On the device, images twice while the view is applied, and labels as int64.
    return step + copies + 2 * sum(array.nbytes for array in arrays.by_name().values()) + 8 * len(arrays.labels)


def _take_steps(model: Model, train: Train, arrays: TrainingArrays, device: str) -> int:
    """Take a few steps and predict one batch; returns the bytes of the best and the averaged weights."""
    images = torch.from_numpy(arrays.images[: 2 * train.batch_size + 2])
    network = trained_part(make_network(model, None if model.has_frozen_extractor else images))
    is_large = keeps_gpu_busy(network, train.batch_size)
    # With graphs: a whole batch and one that is smaller by a row, which is not replayed, until the first replay.
    # Without: twice a whole batch, since the optimizer's state exists from the end of the first step on.
    n_rows = train.batch_size + (0 if is_large else max(2, train.batch_size - 1))
    train = train.replace(epochs=2 if is_large else STEPS_BEFORE_GRAPH + 1, hard_example_fraction=1)
    labels = torch.from_numpy(arrays.labels[:n_rows].astype(np.int64))
    batches = LabelledImages(images[:n_rows].to(device), labels.to(device))
    with library_settings(device, benchmark=is_large, deterministic=train.deterministic):
        trainer = Trainer(network, batches, FitOptions(train, Affine(), device, False))
        for _ in range(train.epochs):
            with contextlib.suppress(FloatingPointError):  # in fp16: of few steps, few may be skipped
                trainer.train_epoch(tqdm(disable=True))
        inputs = torch.zeros(BATCH_SIZES[device], *images.shape[1:], dtype=images.dtype, device=device)
        predict_logits(network, inputs, device, train.precision)
    return 2 * sum(4 * parameter.numel() for parameter in network.parameters())
