"""Base of the networks that can start from ImageNet's weights: an extractor, which can be frozen, and a head."""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.nn.blocks import Dropout
from pipeline.recipes.settings import Model
from pipeline.shapes import Float

# Of the channels red, green and blue of ImageNet's images; torchvision's published weights were trained with them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageNetInput(nn.Module):
    """Resizes gray images with bilinear interpolation, and returns three equal channels, normalized as for ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        # Not saved with the weights, whose names are torchvision's.
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 3 side side"]:
        resized = interpolate(images, (self.side, self.side), mode="bilinear", align_corners=False)
        normalized: Tensor = (resized - self.mean) / self.std
        return normalized

    def extra_repr(self) -> str:
        return f"side={self.side}"


class TransferNetwork(nn.Module):
    """Convolutions (`features`), average pooling and dense layers (`classifier`), as torchvision names them.

    The random weights are those of K. He et al., Delving deep into rectifiers (2015), with biases of 0: with PyTorch's
    defaults, the outputs of random layers shrink from layer to layer.
    """

    def __init__(self, model: Model, features: nn.Sequential, pooled_side: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.prepare = ImageNetInput(model.side)
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(pooled_side)
        self.classifier = classifier
        self.side, self.frozen = model.side, model.frozen
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @property
    def layers(self) -> nn.Sequential:
        """All layers in order."""
        return nn.Sequential(self.prepare, *self.features, self.avgpool, nn.Flatten(), *self.classifier)

    @property
    def extractor(self) -> nn.Sequential:
        """The frozen layers, with the network's own parameters; their outputs are the inputs of `Head`."""
        n_frozen = len(self.classifier) - len(self.head_classifier)
        dense = [self.avgpool, nn.Flatten(), *list(self.classifier)[:n_frozen]]
        return nn.Sequential(self.prepare, *self.features, *(dense if self.frozen == "all_but_last" else []))

    @property
    def head_classifier(self) -> nn.Sequential:
        """The dense layers that are trained, with dropout in front of the last one."""
        start = 0
        if self.frozen == "all_but_last":
            start = len(self.classifier) - 1
            while isinstance(self.classifier[start - 1], Dropout):
                start -= 1
        head: nn.Sequential = self.classifier[start:]  # type: ignore[assignment]
        return head

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        logits: Tensor = self.layers(images)
        return logits


class Head(nn.Module):
    """The trained part of a network with a frozen extractor: its own parameters under the same names."""

    def __init__(self, network: TransferNetwork) -> None:
        super().__init__()
        self.classifier = network.head_classifier
        is_last = network.frozen == "all_but_last"
        self.pool = nn.Identity() if is_last else nn.Sequential(network.avgpool, nn.Flatten())

    def forward(self, features: Float[Tensor, "n ..."]) -> Float[Tensor, "n 10"]:
        logits: Tensor = self.classifier(self.pool(features))
        return logits


def hash_weights(network: nn.Module) -> str:
    """SHA-256 of the shapes and values of a network's parameters, in order."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(str(tuple(parameter.shape)).encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
