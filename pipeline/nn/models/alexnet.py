"""AlexNet, in the version with one column."""

from torch import nn

from pipeline.nn.blocks import Dropout
from pipeline.nn.transfer import TransferNetwork
from pipeline.recipes.settings import Model


class Network(TransferNetwork):
    """Five convolutions and three dense layers, 57,044,810 parameters.

    Source: A. Krizhevsky, One weird trick for parallelizing convolutional neural networks (2014).
    """

    def __init__(self, model: Model) -> None:
        features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        classifier = nn.Sequential(
            Dropout(model.dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            Dropout(model.dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 10),
        )
        super().__init__(model, features, 6, classifier)
