"""Networks, which map images (n, 1, 28, 28) in [0, 1] to logits (n, 10), and their weights as bytes."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.nn.pixels import scale_pixels
from pipeline.nn.precision import choose_memory_format, inference_precision
from pipeline.nn.transfer import Head, TransferNetwork
from pipeline.recipes.config import ConfigError
from pipeline.recipes.settings import Model
from pipeline.shapes import UInt8
from pipeline.workflow import schemas, store


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
    module = importlib.import_module(f"pipeline.nn.models.{model.name}")
    return scale_pixels(module.Network(model), model.pixels, images)


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


def serialize_network(state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The content of a weights file (safetensors); `metadata` must be serializable as JSON."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in state_dict.items()}
    # A single entry, since safetensors writes several in an order that differs between processes.
    return safetensors.torch.save(weights, {"metadata": json.dumps(metadata)})


def serialize_networks(files: Mapping[str, Path]) -> bytes:
    """The content of a weights file of several networks, from the name and the own weights file of each."""
    networks: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, path in files.items():
        networks[name], own = _read_file(path)
        tensors |= {f"{name}/{key}": tensor for key, tensor in own.items()}
    return serialize_network(tensors, {"networks": networks})


def load_networks(path: Path, device: str) -> list[LoadedNetwork]:
    """Read the content of `serialize_network` or `serialize_networks`: the networks on the device, in order.

    Raises StageError if the weights in the file are not those of the networks that it describes.
    """
    loaded = []
    metadata, tensors = _read_file(path)
    for name, own_metadata in metadata.get("networks", {"": metadata}).items():
        prefix = f"{name}/" if name else ""
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        model = Model(**own_metadata["model"])
        expected = require_trainable(model, batch_size=2).state_dict()  # without memory: the file may name any layers
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in expected.items()}:
            raise store.damaged(path, f"it does not contain the weights of {model.name}")
        if not all(tensor.isfinite().all() for tensor in own.values()):
            raise store.damaged(path, "a weight is not a finite number")
        network = make_network(model)
        network.load_state_dict(own)
        precision = inference_precision(own_metadata["precision"], device)
        network.to(device, memory_format=choose_memory_format(device, precision))  # type: ignore[call-overload]
        loaded.append(LoadedNetwork(network, own_metadata))
    return loaded


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata in a weights file. Raises StageError if it is damaged."""
    return _read_file(path)[0]


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the weights in a weights file. Raises StageError if it is damaged."""
    try:
        content = path.read_bytes()  # since safetensors opens no file whose path is not UTF-8
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata: dict[str, Any] = json.loads((header.get("__metadata__") or {}).get("metadata", ""))
        schemas.check(metadata, schemas.NetworksMetadata | schemas.NetworkMetadata)
    except (safetensors.SafetensorError, ValueError, RecursionError):
        raise store.damaged(path) from None
    return metadata, tensors
