"""A small network in place of AlexNet, and files with weights for it."""

import io

import torch
from torch import nn

from pipeline.nn.blocks import Dropout
from pipeline.nn.imagenet_weights import LAST_LAYER
from pipeline.nn.transfer import TransferNetwork
from pipeline.recipes.settings import Model

MODEL = Model(name="alexnet", side=64)
# The settings of a run of a few seconds.
QUICK = (
    *("--recipe", "transfer/alexnet", "--device", "cpu", "--set", "model.side=64", "--set", "train.epochs=2"),
    *("--set", "train.batch_size=50", "--set", "train.precision=fp32", "--set", "train.schedule=constant"),
)
RANDOM = (*QUICK, "--set", "model.pretrained=none")


class SmallNetwork(TransferNetwork):
    """The layers of AlexNet's kinds, with 1,298 weights."""

    def __init__(self, model):
        features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2))
        dense = [nn.Linear(32, 12), nn.ReLU(inplace=True), Dropout(model.dropout), nn.Linear(12, 12)]
        classifier = nn.Sequential(Dropout(model.dropout), *dense, nn.ReLU(inplace=True), nn.Linear(12, 10))
        super().__init__(model, features, 2, classifier)


def imagenet_state(network):
    """Weights of the network's names and shapes, with 1,000 outputs of the last layer."""
    generator = torch.Generator().manual_seed(7)
    state = {
        name: torch.randn(value.shape, generator=generator) / max(4, value[0].numel() ** 0.5)
        for name, value in network.state_dict().items()
    }
    columns = state[f"{LAST_LAYER}.weight"].shape[1]
    return state | {
        f"{LAST_LAYER}.weight": torch.zeros(1000, columns),
        f"{LAST_LAYER}.bias": torch.zeros(1000),
    }


def as_file(state, legacy=False):
    """The content of a file that torch.save writes."""
    content = io.BytesIO()
    torch.save(state, content, _use_new_zipfile_serialization=not legacy)
    return content.getvalue()
