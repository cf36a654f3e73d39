"""The network that a recipe defines layer by layer (`model.layers`)."""

import torch
from torch import Tensor, nn

from pipeline.nn.blocks import Dropout
from pipeline.recipes.config import ConfigError
from pipeline.recipes.settings import Model
from pipeline.shapes import Float

IMAGE_LAYERS = ("conv", "max_pool", "avg_pool", "global_pool", "squeeze_excite")


class Network(nn.Module):
    """The layers of `model.layers` in order, and a dense layer with 10 outputs.

    A flattening layer is inserted between an image and a dense layer. Raises ConfigError if a layer does not accept the
    output of the layer before it.
    """

    @torch.no_grad()
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        values = torch.zeros(1, 1, 28, 28)  # the output of each layer, for its shape
        for definition in (*model.layers, "dense 10"):
            if definition.startswith("dense") and values.dim() == 4:
                self.layers.append(nn.Flatten())
                values = values.flatten(1)
            layer = _make_layer(definition, model.dropout, values)
            try:
                values = layer.eval()(values)
            except RuntimeError:  # PyTorch's "Kernel size can't be greater than actual input size"
                height, width = values.shape[2:]
                raise ConfigError(f"model.layers: {definition!r} is larger than its input, {height}x{width}") from None
            self.layers.append(layer.train())

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        logits: Tensor = self.layers(images)
        return logits


def _make_layer(definition: str, dropout: float, values: Float[Tensor, "1 channels *sides"]) -> nn.Module:
    """The layer of a definition such as "conv 32 3x3 stride 2 pad 1" for these input values."""
    kind, *arguments = definition.split()
    inputs, is_image = values.shape[1], values.dim() == 4
    if kind in IMAGE_LAYERS and not is_image:
        raise ConfigError(f"model.layers: {definition!r} requires an image, but follows a dense layer")
    match kind:
        case "conv":
            outputs, kernel, *options = arguments
            height, width = kernel.split("x")
            if height != width:
                raise ConfigError(f"model.layers: {definition!r}: the kernel must be square")
            sizes = dict(zip(options[::2], map(int, options[1::2]), strict=True))
            return nn.Conv2d(inputs, int(outputs), int(height), sizes.get("stride", 1), sizes.get("pad", 0))
        case "dense":
            return nn.Linear(inputs, int(arguments[0]))
        case "batch_norm":
            return nn.BatchNorm2d(inputs) if is_image else nn.BatchNorm1d(inputs)
        case "max_pool":
            return nn.MaxPool2d(int(arguments[0]))
        case "avg_pool":
            return nn.AvgPool2d(int(arguments[0]))
        case "global_pool":
            return nn.AdaptiveAvgPool2d(1)
        case "squeeze_excite":
            return SqueezeExcite(inputs, max(1, inputs // int(arguments[0])))
        case "dropout":
            return Dropout(dropout)
        case "tanh":
            return nn.Tanh()
    return nn.ReLU(inplace=True)


class SqueezeExcite(nn.Module):
    """Weights channels by the output of a small network on their means.

    Source: J. Hu et al., Squeeze-and-Excitation Networks, CVPR 2018.
    """

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(nn.Linear(channels, middle), nn.ReLU(), nn.Linear(middle, channels), nn.Sigmoid())

    def forward(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n channels height width"]:
        weights: Tensor = self.weights(images.mean((2, 3)))
        return images * weights[:, :, None, None]
