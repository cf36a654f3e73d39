"""What happens inside a trained network: layer outputs, weights and their history, and the saliency of pixels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.metrics.classification import most_confident_errors
from pipeline.nn.inference import as_input, choose_batch_size
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.models.layers import SqueezeExcite
from pipeline.nn.networks import flatten_layers
from pipeline.nn.pixels import Pixels
from pipeline.nn.transfer import ImageNetInput, TransferNetwork
from pipeline.recipes.settings import Model
from pipeline.shapes import Float, Float32, Float64, Int64, Integer, UInt8

OCCLUSION_SIZE = 5  # pixels: the side of the square that occlusion paints over
MAX_CASES = 10  # correct predictions, and errors, whose saliency is computed
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)  # of the weights of a layer


DESCRIPTIONS: dict[type[nn.Module], str] = {
    nn.BatchNorm1d: "batch norm",
    nn.BatchNorm2d: "batch norm",
    ImageNetInput: "ImageNet's input",
    nn.ReLU: "ReLU",
    nn.Tanh: "tanh",
    Pixels: "scaled pixels",
    SqueezeExcite: "squeeze, excite",
}


def describe_layer(layer: nn.Module) -> str:
    """A layer in one to three words; "" for layers that change nothing in evaluation mode (dropout, flattening)."""
    match layer:
        case nn.Conv2d():
            return f"conv {layer.kernel_size[0]}x{layer.kernel_size[1]}, {layer.out_channels}"
        case nn.Linear():
            return f"dense {layer.out_features}"
        case nn.MaxPool2d() | nn.AvgPool2d():
            return f"{'max' if isinstance(layer, nn.MaxPool2d) else 'average'} pool {layer.kernel_size}"
        case nn.AdaptiveAvgPool2d():
            return "global average" if layer.output_size == 1 else f"average to {layer.output_size}x{layer.output_size}"
    return DESCRIPTIONS.get(type(layer), "")


def make_untrained(network: nn.Module, model: Model, seed: int, device: str) -> nn.Module:
    """The network before its first training step, with the trained network's pixel scaling and frozen layers.

    If a network whose layers all are trained started from ImageNet's weights, the result has random weights instead.
    """
    # The memory format affects rounding only, to which t-SNE is sensitive.
    untrained: nn.Module = make_initial_network(model, seed).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for before, after in zip(flatten_layers(untrained), flatten_layers(network), strict=True):
        if isinstance(before, Pixels):
            before.load_state_dict(after.state_dict())
    if isinstance(untrained, TransferNetwork) and isinstance(network, TransferNetwork) and model.has_frozen_extractor:
        untrained.extractor.load_state_dict(network.extractor.state_dict())
    return untrained


@torch.no_grad()
def layer_outputs(network: nn.Module, image: UInt8[Tensor, "28 28"]) -> list[tuple[str, Float32[np.ndarray, "..."]]]:
    """The description and the output of each layer for one image: (channels, height, width) or (values,)."""
    network.eval()
    values, outputs = _to_input(network, image[None]), []
    for layer in flatten_layers(network):
        values = layer(values)
        if description := describe_layer(layer):
            outputs.append((description, values[0].float().cpu().numpy().copy()))  # a ReLU changes it in place
    return outputs


def first_layer_filters(network: nn.Module) -> Float32[np.ndarray, "outputs height width ..."]:
    """The weights of the first convolution or dense layer as images; with a last axis for three input channels."""
    layer = next(layer for layer in flatten_layers(network) if isinstance(layer, (nn.Conv2d, nn.Linear)))
    weights = _to_numpy(layer.weight)
    side = math.isqrt(weights.shape[1])
    if weights.ndim == 4 and weights.shape[1] == 3:
        return weights.transpose(0, 2, 3, 1)
    return weights[:, 0] if weights.ndim == 4 else weights.reshape(len(weights), side, side)


def last_layer_weights(network: nn.Module) -> Float32[np.ndarray, "10 d"]:
    """The weights of the last layer, which is dense."""
    layer = flatten_layers(network)[-1]
    assert isinstance(layer, nn.Linear)
    return _to_numpy(layer.weight)


def layer_weights(network: nn.Module) -> dict[str, tuple[str, Float32[np.ndarray, " _"]]]:
    """By parameter name: number and description, and flat weights of each convolution and dense layer, in order."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    modules = [module for layer in flatten_layers(network) for module in layer.modules()]
    layers = [module for module in modules if isinstance(module, (nn.Conv2d, nn.Linear))]
    return {
        names[id(layer.weight)]: (f"{number}: {describe_layer(layer)}", _to_numpy(layer.weight).ravel())
        for number, layer in enumerate(layers, 1)
    }


@dataclass(frozen=True)
class LayerHistory:
    """The recorded weights and gradients of a layer after each recorded epoch."""

    description: str
    counts: Int64[np.ndarray, "epochs bins"]  # histogram of the weights, in bins between -limit and limit
    limits: Float64[np.ndarray, " epochs"]
    quantiles: Float64[np.ndarray, "epochs quantiles"]  # QUANTILES of the weights
    gradient_means: list[float]  # of the absolute gradients, without epochs before the first step
    gradient_maxima: list[float]


def layer_histories(record: Sequence[Mapping[str, Any]], descriptions: Mapping[str, str]) -> list[LayerHistory]:
    """The history of each layer that is recorded: frozen layers are not.

    record: the rows of `nn.recorder.Recorder`.
    descriptions: by parameter name.
    """
    histories = []
    recorded = record[0]["layers"].keys() if record else ()
    for name, description in descriptions.items():
        if name not in recorded:
            continue
        epochs = [row["layers"][name] for row in record]
        counts, limits = (np.array([epoch[key] for epoch in epochs]) for key in ("counts", "limit"))
        quantiles = np.array([histogram_quantiles(*epoch) for epoch in zip(counts, limits, strict=True)])
        trained = [epoch for epoch in epochs if epoch["gradient_mean"] is not None]
        means, maxima = ([epoch[key] for epoch in trained] for key in ("gradient_mean", "gradient_max"))
        histories.append(LayerHistory(description, counts, limits, quantiles, means, maxima))
    return histories


def histogram_quantiles(counts: Int64[np.ndarray, " bins"], limit: float) -> Float64[np.ndarray, " quantiles"]:
    """QUANTILES of values whose histogram has equal bins between -limit and limit, by linear interpolation."""
    edges = np.linspace(-limit, limit, len(counts) + 1)
    cumulative = np.concatenate([[0], np.cumsum(counts)]) / np.sum(counts)
    return np.interp(QUANTILES, cumulative, edges)


@dataclass(frozen=True)
class Saliency:
    """Which pixels the prediction for an image depends on."""

    image: UInt8[np.ndarray, "28 28"]
    label: int
    prediction: int
    probability: float  # of the prediction
    input_gradient: Float32[np.ndarray, "28 28"]
    occlusion: Float32[np.ndarray, "28 28"]


def select_cases(
    probabilities: Float32[np.ndarray, "n 10"], labels: UInt8[np.ndarray, " n"]
) -> dict[str, Int64[np.ndarray, " m"]]:
    """Indices of the first correct prediction of each digit ("correct"), and of the most confident errors ("wrong")."""
    correct = np.flatnonzero(probabilities.argmax(1) == labels)
    _, first = np.unique(labels[correct], return_index=True)
    return {"correct": correct[first], "wrong": most_confident_errors(probabilities, labels, MAX_CASES)}


def saliency(
    network: nn.Module,
    images: UInt8[Tensor, "n 28 28"],
    labels: UInt8[np.ndarray, " n"],
    probabilities: Float32[np.ndarray, "n 10"],
) -> list[Saliency]:
    """Input gradient and occlusion of each image, for its predicted digit."""
    predictions = probabilities.argmax(1)
    gradients = input_gradients(network, images, predictions)
    return [
        Saliency(
            image=image.numpy(),
            label=int(label),
            prediction=int(prediction),
            probability=float(probability),
            input_gradient=gradient,
            occlusion=occlusion(network, image, int(prediction)),
        )
        for image, label, prediction, probability, gradient in zip(
            images, labels, predictions, probabilities.max(1), gradients, strict=True
        )
    ]


def input_gradients(
    network: nn.Module, images: UInt8[Tensor, "n 28 28"], digits: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, "n 28 28"]:
    """The gradient of the logit of each image's digit with respect to its pixels (from 0 to 1)."""
    network.eval()
    pixels = _to_input(network, images).requires_grad_()
    logits = network(pixels).gather(1, torch.from_numpy(digits).long().to(pixels.device)[:, None])
    (gradient,) = torch.autograd.grad(logits.sum(), pixels)
    return gradient[:, 0].cpu().numpy()


@torch.no_grad()
def occlusion(network: nn.Module, image: UInt8[Tensor, "28 28"], digit: int) -> Float32[np.ndarray, "28 28"]:
    """By how much the digit's probability falls if a square of OCCLUSION_SIZE pixels around each pixel is set to 0.

    Source: M. Zeiler and R. Fergus, Visualizing and understanding convolutional networks, ECCV 2014.
    """
    network.eval()
    half = OCCLUSION_SIZE // 2
    occluded = image.repeat(1 + image.numel(), 1, 1)  # the first remains unchanged
    for pixel in range(image.numel()):
        row, column = divmod(pixel, image.shape[1])
        occluded[1 + pixel, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1] = 0
    # Half of the squares contain no ink, and change nothing.
    is_changed = (occluded != image).any(2).any(1)
    is_changed[0] = True
    batches = torch.split(occluded[is_changed], choose_batch_size(network, "cpu"))
    outputs = torch.cat([network(_to_input(network, batch)).float().softmax(1) for batch in batches])
    probabilities, falls = outputs[:, digit].cpu(), torch.zeros(len(occluded))
    falls[is_changed] = probabilities[0] - probabilities
    return falls[1:].reshape(image.shape).numpy()


def _to_input(network: nn.Module, images: UInt8[Tensor, "n 28 28"]) -> Float[Tensor, "n 1 28 28"]:
    return as_input(images).to(next(network.parameters()).device)


def _to_numpy(weights: Float[Tensor, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    array: Float32[np.ndarray, "*shape"] = weights.detach().float().cpu().numpy()
    return array
