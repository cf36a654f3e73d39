"""The batch-norm CNN of the recipe `quick`."""

from torch import Tensor, nn

from pipeline.nn.blocks import Dropout, conv_block
from pipeline.recipes.settings import Model
from pipeline.shapes import Float


class Network(nn.Module):
    """Four convolutions and a dense layer, 135,530 parameters; stride 2 in the first one keeps the others fast."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_block(1, 32, 5, stride=2),  # 12x12
            *conv_block(32, 64, 3),  # 10x10
            *conv_block(64, 64, 3, pool=2),  # 8x8, 4x4
            *conv_block(64, 128, 3),  # 2x2
            nn.Flatten(),
            Dropout(model.dropout),
            nn.Linear(128 * 2 * 2, 10),
        )

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        logits: Tensor = self.layers(images)
        return logits
