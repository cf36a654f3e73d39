"""The models by name. Not part of the hashed code: a new model changes no other network."""

from collections.abc import Callable

from torch import nn

from pipeline.nn.models.alexnet import AlexNet
from pipeline.nn.models.dropout_cnn import DropoutCNN
from pipeline.nn.models.layers import Layers
from pipeline.nn.models.medium_cnn import MediumCNN
from pipeline.nn.models.small_cnn import SmallCNN
from pipeline.nn.models.vgg16 import VGG16
from pipeline.settings import Model

MODELS: dict[str, Callable[[Model], nn.Module]] = {
    "dropout_cnn": DropoutCNN,
    "small_cnn": SmallCNN,
    "medium_cnn": MediumCNN,
    "layers": Layers,
    "vgg16": VGG16,
    "alexnet": AlexNet,
}
