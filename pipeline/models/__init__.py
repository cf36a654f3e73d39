"""The networks: each maps float images (n, 1, 28, 28) in [0, 1] to ten logits (n, 10)."""

import json

import safetensors
import safetensors.torch
import torch

from pipeline.models.batch_norm_cnns import MediumCNN, SmallCNN
from pipeline.models.dropout_cnn import DropoutCNN
from pipeline.models.layers import Layers, Pixels
from pipeline.settings import Model, RecipeError

MODELS = {"dropout_cnn": DropoutCNN, "small_cnn": SmallCNN, "medium_cnn": MediumCNN, "layers": Layers}


def make(settings: Model, images=None):
    """The network that settings describe, for float images in [0, 1].

    images: uint8 (n, 28, 28), those that it will be trained on: "standardised" pixels take their mean and deviation.
    """
    network = MODELS[settings.name](settings)
    if settings.pixels == "unit":
        return network
    pixels = Pixels(0.5, 0.5)
    if settings.pixels == "standardised" and images is not None:
        pixels.measure(images)
    return torch.nn.Sequential(pixels, network)


def require_trainable(settings: Model, batch):
    """Build the network on the meta device. Raises RecipeError if its layers do not fit, or need a larger batch."""
    with torch.device("meta"):
        network = make(settings)
        if batch > 1:
            return network
        try:
            network.train()(torch.zeros(batch, 1, 28, 28))
        except ValueError:  # PyTorch's "Expected more than 1 value per channel when training"
            raise RecipeError(
                "train.batch is 1, but batch normalization requires at least 2 where one value per channel is left"
            ) from None
    return network


def save_weights(tensors, about):
    """The bytes of a `weights.safetensors`: tensors by name, and what they are of, which JSON must be able to hold."""
    # One entry: safetensors writes several in an order that changes from process to process.
    return safetensors.torch.save(tensors, {"about": json.dumps(about)})


def save_members(files):
    """The bytes of one `weights.safetensors` of many: by name, what more to say of a network, and its own file."""
    tensors, about = {}, {}
    for name, (more, path) in files.items():
        about[name] = _read_about(path) | more
        tensors |= {f"{name}/{key}": tensor for key, tensor in safetensors.torch.load_file(path).items()}
    return save_weights(tensors, {"members": about})


def load_weights(path, device):
    """The networks in a `weights.safetensors` that this pipeline wrote: a list of pairs, as they are asked for.

    Each is a network on `device` and what the file says of it: its model, the precision it was trained in, the epoch
    kept; of an ensemble's member also its seed and the fold that it was not trained on. The file says which models it
    is of, so it can be read without its recipe.
    """
    about = _read_about(path)
    tensors = safetensors.torch.load_file(path)
    made = []
    for name, each in about.get("members", {"": about}).items():
        settings = Model(**each["model"])
        network = make(settings)
        start = f"{name}/" if name else ""
        own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        network.load_state_dict(own)
        made.append((network.to(device, memory_format=torch.channels_last), each))
    return made


def _read_about(path):
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["about"])
