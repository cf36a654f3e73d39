"""The memory that a training needs on a GPU, measured."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from pipeline.devices import is_out_of_memory, out_of_memory, release_memory
from pipeline.nn.inference import BATCH_SIZES, predict_logits
from pipeline.nn.models import make_network, trained_part
from pipeline.nn.precision import keeps_gpu_busy, library_settings
from pipeline.nn.training_loop import STEPS_BEFORE_GRAPH, FitOptions, LabelledImages, Trainer
from pipeline.settings import Affine, Model, Train

if TYPE_CHECKING:
    from pipeline.dataset.training_arrays import TrainingArrays


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
