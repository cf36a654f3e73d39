"""The networks by name, which map images (n, 1, 28, 28) in [0, 1] to logits (n, 10), and their weights as bytes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.nn.models.alexnet import AlexNet
from pipeline.nn.models.dropout_cnn import DropoutCNN
from pipeline.nn.models.layers import Layers
from pipeline.nn.models.medium_cnn import MediumCNN
from pipeline.nn.models.pixels import Pixels as Pixels
from pipeline.nn.models.pixels import scale_pixels
from pipeline.nn.models.small_cnn import SmallCNN
from pipeline.nn.models.transfer import Head as Head
from pipeline.nn.models.transfer import TransferNetwork as TransferNetwork
from pipeline.nn.models.vgg16 import VGG16
from pipeline.nn.precision import choose_memory_format, inference_precision
from pipeline.settings import Model
from pipeline.shapes import UInt8

MODELS: dict[str, Callable[[Model], nn.Module]] = {
    "dropout_cnn": DropoutCNN,
    "small_cnn": SmallCNN,
    "medium_cnn": MediumCNN,
    "layers": Layers,
    "vgg16": VGG16,
    "alexnet": AlexNet,
}


@dataclass
class LoadedNetwork:
    """A network from a weights file, and what the file records of it.

    metadata: "model" (its settings), "precision", "epoch", "checkpoint_selection", "fit_all", "fold" and "seed".
    """

    network: nn.Module
    metadata: dict[str, Any]


def make_network(model: Model, images: UInt8[Tensor, "n 28 28"] | None = None) -> nn.Module:
    """Create a network with random weights.

    images: the training images, if `model.pixels` is "standardised" and the weights are not loaded afterwards.
    """
    return scale_pixels(MODELS[model.name](model), model.pixels, images)


def trained_part(network: nn.Module) -> nn.Module:
    """The part of a network that is trained: a head that shares its parameters, or the network itself."""
    if isinstance(network, TransferNetwork) and network.frozen != "nothing":
        return Head(network)
    return network


def flatten_layers(network: nn.Module) -> list[nn.Module]:
    """The layers of a network in order: every model is a sequence of layers."""
    if isinstance(network, nn.Sequential):
        return [layer for part in network for layer in flatten_layers(part)]
    layers = getattr(network, "layers", None)
    return flatten_layers(layers) if isinstance(layers, nn.Sequential) else [network]


def require_trainable(model: Model, batch_size: int) -> nn.Module:
    """Create a network without memory for its weights (on the meta device).

    Raises ConfigError if the layers do not fit each other, or if batch norm requires larger batches.
    """
    with torch.device("meta"):
        network = make_network(model)
        if batch_size == 1:
            try:
                network.train()(torch.zeros(1, 1, 28, 28))
            except ValueError:  # PyTorch's "Expected more than 1 value per channel when training"
                raise ConfigError(
                    "train.batch_size is 1, but batch normalization of dense layers and of 1x1 images requires at "
                    "least 2"
                ) from None
    return network


def serialize_network(state_dict: dict[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The content of a weights file (safetensors); `metadata` must be serializable as JSON."""
    # A single entry, since safetensors writes several in an order that differs between processes.
    return safetensors.torch.save(state_dict, {"metadata": json.dumps(metadata)})


def serialize_networks(files: Mapping[str, Path]) -> bytes:
    """The content of a weights file of several networks, from the name and the own weights file of each."""
    networks: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, path in files.items():
        networks[name] = read_metadata(path)
        tensors |= {f"{name}/{key}": tensor for key, tensor in safetensors.torch.load_file(path).items()}
    return serialize_network(tensors, {"networks": networks})


def load_networks(path: Path, device: str) -> list[LoadedNetwork]:
    """Read the content of `serialize_network` or `serialize_networks`: the networks on the device, in order."""
    metadata, tensors = read_metadata(path), safetensors.torch.load_file(path)
    loaded = []
    for name, own_metadata in metadata.get("networks", {"": metadata}).items():
        prefix = f"{name}/" if name else ""
        network = make_network(Model(**own_metadata["model"]))
        network.load_state_dict(
            {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        )
        precision = inference_precision(own_metadata["precision"], device)
        network.to(device, memory_format=choose_memory_format(device, precision))  # type: ignore[call-overload]
        loaded.append(LoadedNetwork(network, own_metadata))
    return loaded


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata in a weights file."""
    with safetensors.safe_open(path, "pt") as file:
        metadata: dict[str, Any] = json.loads(file.metadata()["metadata"])
    return metadata
