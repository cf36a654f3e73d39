"""The batch-norm CNNs of `quick` and `standard`: a first convolution with stride 2 keeps all that follows small."""

from torch import nn

from pipeline.models.dropout import Dropout
from pipeline.settings import Model


class SmallCNN(nn.Module):
    """Four convolutions and a dense layer; 135,530 parameters."""

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


class MediumCNN(nn.Module):
    """Four convolutions and a dense layer; 541,898 parameters."""

    def __init__(self, settings: Model):
        super().__init__()
        self.layers = nn.Sequential(
            *_block(1, 64, 5, stride=2),  # 12x12
            *_block(64, 128, 3, padding=1),
            *_block(128, 128, 3, pool=2),  # 10x10, 5x5
            *_block(128, 256, 3),  # 3x3
            nn.Flatten(),
            Dropout(settings.dropout),
            nn.Linear(256 * 3 * 3, 10),
        )

    def forward(self, images):
        return self.layers(images)


def _block(inputs, outputs, kernel, stride=1, padding=0, pool=1):
    """Convolution without bias (batch norm brings its own), pooling before the rest, which then has less to do."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
    return convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU()
