"""The memory that a training needs on a GPU, measured."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from pipeline.devices import is_out_of_memory, out_of_memory
from pipeline.nn.inference import BATCH_SIZES, predict_logits
from pipeline.nn.models import make_network, trained_part
from pipeline.nn.precision import library_settings
from pipeline.nn.training_loop import FitOptions, LabelledImages, Trainer
from pipeline.settings import Affine, Model, Train

if TYPE_CHECKING:
    from pipeline.dataset.training_arrays import TrainingArrays


def measure_footprint(model: Model, train: Train, arrays: TrainingArrays, device: str = "cuda") -> int:
    """Bytes of PyTorch's memory on the current GPU that a training needs, measured in two steps and one prediction.

    Raises StageError if the memory is too small.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        with library_settings(device, benchmark=True, deterministic=train.deterministic):
            copies = _take_steps(model, train, arrays, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory("train") from None
    step = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()  # for the processes that train
    # On the device, images twice while the view is applied, and labels as int64.
    return step + copies + 2 * sum(array.nbytes for array in arrays.by_name().values()) + 8 * len(arrays.labels)


def _take_steps(model: Model, train: Train, arrays: TrainingArrays, device: str) -> int:
    """Train for two steps and predict one batch; returns the bytes of the best and the averaged weights."""
    images, labels = torch.from_numpy(arrays.images[: train.batch_size]), arrays.labels[: train.batch_size]
    batch = LabelledImages(images.to(device), torch.from_numpy(labels.astype(np.int64)).to(device))
    network = trained_part(make_network(model, None if model.has_frozen_extractor else images))
    trainer = Trainer(network, batch, FitOptions(train.replace(epochs=2), Affine(), device, False))
    for _ in range(2):  # the optimizer's state exists from the end of the first step on
        with contextlib.suppress(FloatingPointError):  # in fp16, a step may be skipped, and it is the only one
            trainer.train_epoch(tqdm(disable=True))
    inputs = torch.zeros(BATCH_SIZES[device], *images.shape[1:], dtype=images.dtype, device=device)
    predict_logits(network, inputs, device, train.precision)
    return 2 * sum(4 * parameter.numel() for parameter in network.parameters())
