"""Networks in other formats: an ONNX graph, and the layers that the page runs in JavaScript."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dataset import views
from pipeline.errors import StageError
from pipeline.nn.blocks import Dropout
from pipeline.nn.inference import as_input, choose_batch_size, predict_probabilities
from pipeline.nn.models.layers import SqueezeExcite
from pipeline.nn.networks import LoadedNetwork, flatten_layers
from pipeline.nn.pixels import Pixels
from pipeline.recipes.settings import Predict
from pipeline.shapes import Float, Float32, UInt8

# The lowest version of ONNX's operators that PyTorch's exporter writes, and the lowest of the file format for it.
OPSET, IR_VERSION = 18, 8


class Predictor(nn.Module):
    """Images to the mean probabilities of several networks, with their views, over shifted copies, in float32."""

    def __init__(self, networks: Sequence[LoadedNetwork], predict: Predict) -> None:
        super().__init__()
        self.networks = nn.ModuleList(loaded.network for loaded in networks)
        self.views = [loaded.metadata["model"]["view"] for loaded in networks]
        self.predict = predict

    def forward(self, images: UInt8[Tensor, "n 28 28"]) -> Float32[Tensor, "n 10"]:
        viewed = {name: self._shifted_copies(_apply_view(images, name)) for name in dict.fromkeys(self.views)}
        means = [
            self._average_copies(network(viewed[view]).softmax(1))
            for network, view in zip(self.networks, self.views, strict=True)
        ]
        return torch.stack(means).mean(0)

    def _shifted_copies(self, images: UInt8[Tensor, "n 28 28"]) -> Float32[Tensor, "copies 1 28 28"]:
        values, shifts = as_input(images), self.predict.shifts
        return torch.cat([nn.functional.pad(values, (right, -right, down, -down)) for right, down in shifts])

    def _average_copies(self, probabilities: Float32[Tensor, "copies 10"]) -> Float32[Tensor, "n 10"]:
        """The mean over the copies of an image, or its first copy if that has a margin above `shift_margin`."""
        copies = probabilities.reshape(len(self.predict.shifts), -1, 10)
        largest = copies[0].topk(2).values
        is_averaged = largest[:, :1] - largest[:, 1:] <= self.predict.shift_margin
        return torch.where(is_averaged, copies.mean(0), copies[0])


def _apply_view(images: UInt8[Tensor, "n 28 28"], name: str) -> UInt8[Tensor, "n 28 28"]:
    """A view of the whole batch: `apply_view` splits it into parts, whose number cannot vary in a graph."""
    return images if name == "plain" else views._apply_view(images, *views.VIEWS[name])


def to_onnx(networks: Sequence[LoadedNetwork], predict: Predict) -> bytes:
    """The networks as one ONNX graph, from "images" (n, 28, 28), uint8, to "probabilities" (n, 10), float32.

    Equal networks give equal bytes on every machine with the same versions of the packages.

    The networks must be on the CPU.
    """
    predictor = Predictor(networks, predict).eval()
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    with _without_warnings():
        program = torch.onnx.export(
            predictor,
            (images,),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    model.ClearField("producer_version")  # differs between builds of the same version of PyTorch
    _clear_metadata(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _clear_metadata(message: Any) -> None:
    """Clear texts that do not affect the graph: PyTorch records in them from which line of which file a node comes."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type:
            for item in value if isinstance(value, Sequence) else [value]:
                _clear_metadata(item)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide what PyTorch's exporter reports of itself: that torchvision is missing, and what it will change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def compare_graph(
    graph: bytes, networks: Sequence[LoadedNetwork], predict: Predict, images: UInt8[Tensor, "n 28 28"]
) -> float:
    """The largest difference of the probabilities of an ONNX graph to those of PyTorch in float32.

    Raises onnx.checker.ValidationError if the graph is not valid.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    batch_size = min(choose_batch_size(loaded.network, "cpu") for loaded in networks)
    batches = [session.run(["probabilities"], {"images": batch.numpy()})[0] for batch in images.split(batch_size)]
    probabilities = np.concatenate(batches)
    in_float32 = [LoadedNetwork(loaded.network, {**loaded.metadata, "precision": "fp32"}) for loaded in networks]
    expected = np.mean([predict_probabilities(loaded, images, predict, "cpu") for loaded in in_float32], axis=0)
    return float(np.abs(probabilities - expected).max())


class NotOnPage(StageError):
    """The page cannot run a network; the message says why."""


@dataclass
class PageNetwork:
    """A network for the page: its layers in order, and their weights one after another, before their biases."""

    layers: list[dict[str, Any]]
    weights: bytes  # 16-bit floats, little-endian


def to_page_network(loaded: LoadedNetwork) -> PageNetwork:
    """The layers of a network, with batch norm folded into the layer before it where possible. Raises NotOnPage."""
    if (view := loaded.metadata["model"]["view"]) != "plain":
        raise NotOnPage(f"the network sees images through the view {view}, which the page does not have")
    layers: list[tuple[dict[str, Any], list[Float[Tensor, ...]]]] = []
    for module in flatten_layers(loaded.network):
        if isinstance(module, Dropout):  # does nothing after training
            continue
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            factors, offsets = _batch_norm(module)
            if layers and layers[-1][0]["kind"] in ("conv", "dense"):
                weights, biases = layers[-1][1]
                shape = (-1, *[1] * (weights.dim() - 1))
                layers[-1] = (layers[-1][0], [weights * factors.reshape(shape), biases * factors + offsets])
            else:
                layers.append(({"kind": "scale", "channels": len(factors)}, [factors, offsets]))
        else:
            layers.append(_describe(module))
    values = [tensor.detach().flatten().cpu().numpy() for _, tensors in layers for tensor in tensors]
    return PageNetwork([layer for layer, _ in layers], np.concatenate(values).astype("<f2").tobytes())


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Batch norm after training as a factor and an offset per channel."""
    assert module.running_mean is not None and module.running_var is not None
    factors = module.weight / torch.sqrt(module.running_var + module.eps)
    return factors, module.bias - module.running_mean * factors


def _describe(module: nn.Module) -> tuple[dict[str, Any], list[Float[Tensor, ...]]]:
    """A layer as the page knows it, and its weights."""
    match module:
        case nn.Conv2d():
            outputs, inputs, kernel, _ = module.weight.shape
            stride, pad = module.stride[0], module.padding[0]
            biases = torch.zeros(outputs) if module.bias is None else module.bias
            layer = {"inputs": inputs, "outputs": outputs, "kernel": kernel, "stride": stride, "pad": pad}
            return {"kind": "conv", **layer}, [module.weight, biases]
        case nn.Linear():
            return {"kind": "dense", "inputs": module.in_features, "outputs": module.out_features}, [
                module.weight,
                module.bias,
            ]
        case Pixels():
            factor = 1 / module.deviation
            return {"kind": "scale", "channels": 1}, [factor.reshape(1), (-module.mean * factor).reshape(1)]
        case SqueezeExcite():
            tensors: list[Float[Tensor, "*shape"]] = list(module.weights.parameters())
            middle, channels = tensors[0].shape
            return {"kind": "squeeze_excite", "channels": channels, "middle": middle}, tensors
        case nn.MaxPool2d():
            return {"kind": "max_pool", "size": module.kernel_size}, []
        case nn.AvgPool2d():
            return {"kind": "avg_pool", "size": module.kernel_size}, []
        case nn.AdaptiveAvgPool2d():
            return {"kind": "global_pool"}, []
        case nn.ReLU():
            return {"kind": "relu"}, []
        case nn.Tanh():
            return {"kind": "tanh"}, []
        case nn.Flatten():
            return {"kind": "flatten"}, []
    raise NotOnPage(f"the page has no layer {type(module).__name__}")
