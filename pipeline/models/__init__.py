"""The networks: each maps float images (n, 1, 28, 28) in [0, 1] to ten logits (n, 10)."""

import json

import safetensors
import safetensors.torch
import torch

from pipeline.models.dropout_cnn import DropoutCNN
from pipeline.models.small_cnn import SmallCNN
from pipeline.recipe import Model

MODELS = {"dropout_cnn": DropoutCNN, "small_cnn": SmallCNN}


def load_weights(path, device):
    """The network in a `weights.safetensors` that this pipeline wrote, on `device`, and what the file says of itself.

    The file says which model it is of, so it can be read without its recipe.
    """
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
    settings = Model(**json.loads(about["model"]))
    network = MODELS[settings.name](settings)
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.to(device, memory_format=torch.channels_last), about
