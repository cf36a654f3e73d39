"""The small batch-norm CNN of `quick`."""

from torch import nn

from pipeline.recipe import Model


class SmallCNN(nn.Module):
    """Five convolutions with batch norm, the first at full size for detail; 173,522 parameters."""

    def __init__(self, settings: Model):
        super().__init__()
        self.layers = nn.Sequential(
            *_block(1, 24, 3),  # 26x26
            *_block(24, 32, 5, stride=2),  # 11x11
            *_block(32, 48, 3),  # 9x9
            *_block(48, 48, 3),  # 7x7
            *_block(48, 96, 5, stride=2),  # 2x2
            nn.Flatten(),
            nn.Dropout(settings.dropout),
            nn.Linear(96 * 2 * 2, 10),
        )

    def forward(self, images):
        return self.layers(images)


def _block(inputs, outputs, kernel, stride=1):
    # No bias: batch norm's own follows.
    return nn.Conv2d(inputs, outputs, kernel, stride, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
