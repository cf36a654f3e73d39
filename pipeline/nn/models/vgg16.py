"""VGG16."""

from torch import nn

from pipeline.nn.blocks import Dropout
from pipeline.nn.transfer import TransferNetwork
from pipeline.recipes.settings import Model

# Output channels of the 3x3 convolutions in each block; a max pooling of 2 ends a block.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class Network(TransferNetwork):
    """Thirteen convolutions and three dense layers, 134,301,514 parameters.

    Source: K. Simonyan and A. Zisserman, Very deep convolutional networks for large-scale image recognition, ICLR 2015,
    configuration D.
    """

    def __init__(self, model: Model) -> None:
        features, inputs = nn.Sequential(), 3
        for block in BLOCKS:
            for outputs in block:
                features.append(nn.Conv2d(inputs, outputs, 3, padding=1))
                features.append(nn.ReLU(inplace=True))
                inputs = outputs
            features.append(nn.MaxPool2d(2))
        classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            Dropout(model.dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            Dropout(model.dropout),
            nn.Linear(4096, 10),
        )
        super().__init__(model, features, 7, classifier)
