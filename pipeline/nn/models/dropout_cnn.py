"""The dropout CNN of the published recipe."""

from torch import Tensor, nn

from pipeline.nn.blocks import Dropout
from pipeline.recipes.settings import Model
from pipeline.shapes import Float


class Network(nn.Module):
    """Two convolutions and three dense layers, with dropout after each except the last; 1,805,130 parameters.

    ReLU follows dropout and pooling, where it processes a quarter of the values. The function is that of the published
    order, since relu(max(m x)) = max(m relu(x)) for m >= 0.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 64, 5),
            Dropout(model.dropout),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 256, 3),
            Dropout(model.dropout),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(256 * 5 * 5, 256),
            Dropout(model.dropout),
            nn.ReLU(inplace=True),
            nn.Linear(256, 64),
            Dropout(model.dropout),
            nn.ReLU(inplace=True),
            nn.Linear(64, 10),
        )

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        logits: Tensor = self.layers(images)
        return logits
