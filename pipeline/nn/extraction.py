"""Features of images: the outputs of a frozen extractor."""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dataset.views import apply_view
from pipeline.nn.inference import as_input
from pipeline.nn.precision import autocast, choose_memory_format, library_settings
from pipeline.shapes import Float16, UInt8

# Pixels of the resized images per batch, by device: 20 and 334 images of 224x224. Affects results by rounding only.
BATCH_PIXELS = {"cpu": 1 << 20, "cuda": 1 << 24, "mps": 1 << 22}


@torch.inference_mode()
def extract_features(
    extractor: nn.Sequential, images: UInt8[Tensor, "n 28 28"], view: str, device: str, precision: str
) -> Float16[np.ndarray, "n ..."]:
    """The outputs of an extractor, whose first layer is an `ImageNetInput`; both are on the device.

    images: without the view.
    Raises FloatingPointError if a feature exceeds the range of fp16.
    """
    extractor.eval()
    batch_size = max(1, BATCH_PIXELS[device] // extractor[0].side ** 2)  # type: ignore[operator]
    memory_format = choose_memory_format(device, precision)
    outputs = []
    with library_settings(device), autocast(device, precision):
        for batch in apply_view(images, view).split(batch_size):
            outputs.append(extractor(as_input(batch, memory_format)).to(torch.float16).contiguous().cpu())
    features: Float16[np.ndarray, "n ..."] = torch.cat(outputs).numpy()
    if not np.isfinite(features).all():
        raise FloatingPointError("a feature exceeds 65,504, the range of fp16: choose another model.frozen")
    return features


def hash_weights(network: nn.Module) -> str:
    """SHA-256 of the shapes and values of a network's parameters, in order."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(str(tuple(parameter.shape)).encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
