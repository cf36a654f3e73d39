"""Inference: logits and probabilities of a network, with test-time augmentation."""

import contextlib

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.config import Predict
from pipeline.dataset.views import apply_view
from pipeline.nn.models import LoadedNetwork
from pipeline.shapes import Float32, UInt8

BATCH_SIZES = {"cpu": 512, "cuda": 8192, "mps": 2048}  # by device; affects results by rounding only


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager[None]:
    """The context in which convolutions and matrix products run in `precision`, "fp32" or "bf16"."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def as_input(images: UInt8[Tensor, "n 28 28"]) -> Float32[Tensor, "n 1 28 28"]:
    """Convert images to the input of a network: values in [0, 1], channels last."""
    return images.unsqueeze(1).float().div_(255).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict_logits(
    network: nn.Module, images: UInt8[Tensor, "n 28 28"], device: str, precision: str, progress: tqdm | None = None
) -> Float32[Tensor, "n 10"]:
    """Logits in evaluation mode.

    images: on the device, as is the result.
    progress: advanced by the number of images.
    """
    network.eval()
    logits = []
    with autocast(device, precision):
        for batch in images.split(BATCH_SIZES[device]):
            logits.append(network(as_input(batch)).float())
            if progress is not None:
                progress.update(len(batch))
    return torch.cat(logits)


def predict_probabilities(
    loaded: LoadedNetwork, images: UInt8[Tensor, "n 28 28"], predict: Predict, device: str
) -> Float32[np.ndarray, "n 10"]:
    """Probabilities with the network's own view and precision, averaged over the shifted copies in `predict.shifts`.

    images: on any device, without the view.
    """
    images = apply_view(images.to(device), loaded.metadata["model"]["view"])
    precision, n_copies = loaded.metadata["precision"], len(predict.shifts)
    total = torch.zeros(len(images), 10, device=device)
    with tqdm(total=n_copies * len(images), desc="infer", unit="image", disable=None) as progress:
        for right, down in predict.shifts:
            shifted = _shift(images, right, down)
            total += predict_logits(loaded.network, shifted, device, precision, progress).softmax(1)
    probabilities: Float32[np.ndarray, "n 10"] = (total / n_copies).cpu().numpy()
    return probabilities


def _shift(images: UInt8[Tensor, "n 28 28"], right: int, down: int) -> UInt8[Tensor, "n 28 28"]:
    """Shift images by whole pixels and fill with 0."""
    return nn.functional.pad(images, (right, -right, down, -down)) if right or down else images
