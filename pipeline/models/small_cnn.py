"""The small batch-norm CNN of `quick`."""

from torch import nn

from pipeline.models.dropout import Dropout
from pipeline.recipe import Model


class SmallCNN(nn.Module):
    """Four convolutions with batch norm, the first with stride 2, and a dense layer; 135,530 parameters."""

    def __init__(self, settings: Model):
        super().__init__()
        self.layers = nn.Sequential(
            *_block(1, 32, 5, stride=2),  # 12x12
            *_block(32, 64, 3),  # 10x10
            *_block(64, 64, 3, pool=2),  # 8x8, 4x4
            *_block(64, 128, 3),  # 2x2
            nn.Flatten(),
            Dropout(settings.dropout),
            nn.Linear(128 * 2 * 2, 10),
        )

    def forward(self, images):
        return self.layers(images)


def _block(inputs, outputs, kernel, stride=1, pool=1):
    """Convolution without bias (batch norm brings its own), pooling before the rest, which then has less to do."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, bias=False)
    pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
    return convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU()
