"""The dropout CNN of the published recipe."""

from torch import nn

from pipeline.models.dropout import Dropout
from pipeline.settings import Model


class DropoutCNN(nn.Module):
    """Two convolutions and three dense layers, with dropout after each but the last; 1,805,130 parameters.

    ReLU comes after dropout and pooling: relu(max(m x)) = max(m relu(x)) for m >= 0, the same function of the same
    weights as in the published order, on a quarter of the values.
    """

    def __init__(self, settings: Model):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 64, 5),
            Dropout(settings.dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(64, 256, 3),
            Dropout(settings.dropout),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256 * 5 * 5, 256),
            Dropout(settings.dropout),
            nn.ReLU(),
            nn.Linear(256, 64),
            Dropout(settings.dropout),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images):
        return self.layers(images)
