"""Inference: logits and probabilities of a network, with test-time augmentation."""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from pipeline.dataset.views import apply_view
from pipeline.nn.networks import LoadedNetwork, flatten_layers
from pipeline.nn.precision import autocast, choose_memory_format, inference_precision, library_settings
from pipeline.recipes.settings import Predict
from pipeline.shapes import Float, Float32, UInt8

BATCH_SIZES = {"cpu": 512, "cuda": 8192, "mps": 2048}  # by device; affects results by rounding only


def choose_batch_size(network: nn.Module, device: str) -> int:
    """The number of images that a network predicts at a time; fewer if it enlarges them."""
    side = getattr(network, "side", 28)
    return max(1, BATCH_SIZES[device] * 28**2 // side**2)


def as_input(
    images: UInt8[Tensor, "n 28 28"] | Float[Tensor, "n ..."],
    memory_format: torch.memory_format = torch.channels_last,
) -> Float32[Tensor, "n ..."]:
    """Convert images to the input of a network (n, 1, 28, 28) with values in [0, 1], or features to float32."""
    if images.is_floating_point():
        return images.float()
    return images.unsqueeze(1).float().div_(255).contiguous(memory_format=memory_format)


def fuse_batch_norm(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with each batch norm that directly follows a convolution folded into its weights.

    Predictions are equal up to rounding. In fp32, those of `quick` and `standard` take 0.93 and 0.83 times as long.
    """
    fused = copy.deepcopy(network).eval()
    for layers in fused.modules():
        if isinstance(layers, nn.Sequential):
            for index in range(len(layers) - 1):
                convolution, batch_norm = layers[index], layers[index + 1]
                if isinstance(convolution, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm2d):
                    layers[index] = fuse_conv_bn_eval(convolution, batch_norm)
                    layers[index + 1] = nn.Identity()
    return fused


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    images: UInt8[Tensor, "n 28 28"] | Float[Tensor, "n ..."],
    device: str,
    precision: str,
    progress: tqdm | None = None,
) -> Float32[Tensor, "n 10"]:
    """Logits in evaluation mode.

    images: on the device, as is the result; or features, if the network is a head.
    progress: advanced by the number of images.
    """
    network = fuse_batch_norm(network)
    logits, memory_format = [], choose_memory_format(device, precision)
    with autocast(device, precision):
        for batch in torch.split(images, choose_batch_size(network, device)):
            logits.append(network(as_input(batch, memory_format)).float())
            if progress is not None:
                progress.update(len(batch))
    return torch.cat(logits)


def predict_probabilities(
    loaded: LoadedNetwork,
    images: UInt8[Tensor, "n 28 28"] | Float[Tensor, "n ..."],
    predict: Predict,
    device: str,
    progress_bar: bool = True,
) -> Float32[np.ndarray, "n 10"]:
    """Probabilities with the network's own view and precision, averaged over the shifted copies in `predict.shifts`.

    images: on any device, without the view; or features, if the network is a head. Images with a margin above
        `predict.shift_margin` in the first copy are not shifted.
    progress_bar: shown if stderr is a terminal.
    """
    images = images.to(device)
    if not images.is_floating_point():
        images = apply_view(images, loaded.metadata["model"]["view"])
    precision = inference_precision(loaded.metadata["precision"], device)
    with (
        library_settings(device),
        tqdm(
            total=len(images),
            desc="predictions",
            bar_format="{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]",
            leave=False,
            disable=None if progress_bar else True,
        ) as progress,
    ):

        def predict_copy(
            images: UInt8[Tensor, "m 28 28"] | Float[Tensor, "m ..."], shift: tuple[int, int]
        ) -> Float32[Tensor, "m 10"]:
            return predict_logits(loaded.network, _shift(images, *shift), device, precision, progress).softmax(1)

        first, *others = predict.shifts
        probabilities = predict_copy(images, first)
        largest = probabilities.topk(2).values
        rows = (largest[:, 0] - largest[:, 1] <= predict.shift_margin).nonzero().squeeze(1)
        progress.total += len(others) * len(rows)
        if others and len(rows):
            total = probabilities[rows]
            for shift in others:
                total += predict_copy(images[rows], shift)
            probabilities[rows] = total / len(predict.shifts)
    result: Float32[np.ndarray, "n 10"] = probabilities.cpu().numpy()
    return result


def _shift(
    images: UInt8[Tensor, "n 28 28"] | Float[Tensor, "n ..."], right: int, down: int
) -> UInt8[Tensor, "n 28 28"] | Float[Tensor, "n ..."]:
    """Shift images by whole pixels and fill with 0; features have no shift."""
    return nn.functional.pad(images, (right, -right, down, -down)) if right or down else images


@torch.no_grad()
def last_layer_inputs(network: nn.Module, images: UInt8[Tensor, "n 28 28"]) -> Float32[np.ndarray, "n d"]:
    """The features that the last layer classifies."""
    network.eval()
    features = nn.Sequential(*flatten_layers(network)[:-1])
    batches = [
        features(as_input(batch).to(next(network.parameters()).device)).flatten(1).float().cpu()
        for batch in torch.split(images, choose_batch_size(network, "cpu"))
    ]
    return torch.cat(batches).numpy()
