"""The networks: each maps float images (n, 1, 28, 28) in [0, 1] to ten logits (n, 10)."""

import json

import safetensors
import safetensors.torch
import torch

from pipeline.models.batch_norm_cnns import MediumCNN, SmallCNN
from pipeline.models.dropout_cnn import DropoutCNN
from pipeline.recipe import Model

MODELS = {"dropout_cnn": DropoutCNN, "small_cnn": SmallCNN, "medium_cnn": MediumCNN}


def save_weights(tensors, about):
    """The bytes of a `weights.safetensors`: tensors by name, and what they are of, which JSON must be able to hold."""
    # One entry: safetensors writes several in an order that changes from process to process.
    return safetensors.torch.save(tensors, {"about": json.dumps(about)})


def load_weights(path, device):
    """The network in a `weights.safetensors` that this pipeline wrote, on `device`, and what the file says of itself.

    The file says which model it is of, so it can be read without its recipe.
    """
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    settings = Model(**about["model"])
    network = MODELS[settings.name](settings)
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.to(device, memory_format=torch.channels_last), about
