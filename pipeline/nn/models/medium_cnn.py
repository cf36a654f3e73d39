"""The batch-norm CNN of the recipes `standard` and `best`."""

from torch import Tensor, nn

from pipeline.nn.blocks import Dropout, conv_block
from pipeline.recipes.settings import Model
from pipeline.shapes import Float


class Network(nn.Module):
    """Four convolutions and a dense layer, 541,898 parameters; stride 2 in the first one keeps the others fast."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_block(1, 64, 5, stride=2),  # 12x12
            *conv_block(64, 128, 3, padding=1),
            *conv_block(128, 128, 3, pool=2),  # 10x10, 5x5
            *conv_block(128, 256, 3),  # 3x3
            nn.Flatten(),
            Dropout(model.dropout),
            nn.Linear(256 * 3 * 3, 10),
        )

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        logits: Tensor = self.layers(images)
        return logits
