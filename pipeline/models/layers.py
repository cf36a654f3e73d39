"""The network that a recipe spells out, layer by layer (`model.layers`)."""

import torch
from torch import nn

from pipeline.models.dropout import Dropout
from pipeline.settings import Model, RecipeError


class Layers(nn.Module):
    """`settings.layers` in order, flattened where a dense layer follows an image, and a dense layer with 10 outputs."""

    def __init__(self, settings: Model):
        super().__init__()
        made, channels, side = [], 1, 28
        for text in settings.layers:
            kind, *words = text.split()
            if kind == "dense":
                outputs = int(words[0])
                made += [*_flat(side), nn.Linear(channels * max(side, 1) ** 2, outputs)]
                channels, side = outputs, 0
            elif kind in SIMPLE:
                made.append(SIMPLE[kind](settings.dropout))
            elif kind == "batch_norm":
                made.append(nn.BatchNorm2d(channels) if side else nn.BatchNorm1d(channels))
            elif not side:
                raise RecipeError(f"model.layers: {text!r} wants an image, and stands after a dense layer")
            elif kind == "squeeze_excite":
                made.append(SqueezeExcite(channels, max(1, channels // int(words[0]))))
            elif kind == "global_pool":
                made.append(nn.AdaptiveAvgPool2d(1))
                side = 1
            else:
                before = side
                if kind == "conv":
                    layer, channels, side = _convolution(channels, side, words)
                else:
                    size = int(words[0])
                    layer, side = (nn.MaxPool2d if kind == "max_pool" else nn.AvgPool2d)(size), side // size
                if side < 1:
                    raise RecipeError(f"model.layers: {text!r} is larger than the {before}x{before} that is left")
                made.append(layer)
        self.layers = nn.Sequential(*made, *_flat(side), nn.Linear(channels * max(side, 1) ** 2, 10))

    def forward(self, images):
        return self.layers(images)


SIMPLE = {"relu": lambda _: nn.ReLU(), "tanh": lambda _: nn.Tanh(), "dropout": Dropout}


def _flat(side):
    return [nn.Flatten()] if side else []


def _convolution(channels, side, words):
    """The layer, its outputs, and the side of the image behind it: "32 3x3 stride 2 pad 1", split into words."""
    outputs, kernel = int(words[0]), tuple(map(int, words[1].split("x")))
    more = {word: int(number) for word, number in zip(words[2::2], words[3::2], strict=True)}
    stride, pad = more.get("stride", 1), more.get("pad", 0)
    if kernel[0] != kernel[1]:
        raise RecipeError(f"model.layers: a kernel of {words[1]}: only square ones are known")
    return nn.Conv2d(channels, outputs, kernel, stride, pad), outputs, (side + 2 * pad - kernel[0]) // stride + 1


class SqueezeExcite(nn.Module):
    """Channels weighted by what a small network makes of their means.

    Source: J. Hu et al., Squeeze-and-Excitation Networks, CVPR 2018.
    """

    def __init__(self, channels, middle):
        super().__init__()
        self.weights = nn.Sequential(nn.Linear(channels, middle), nn.ReLU(), nn.Linear(middle, channels), nn.Sigmoid())

    def forward(self, images):
        return images * self.weights(images.mean((2, 3)))[:, :, None, None]


class Pixels(nn.Module):
    """What stands before a network whose `model.pixels` are not "unit": pixels less a mean, by a deviation."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def measure(self, images):
        """Take mean and deviation from uint8 images (n, 28, 28)."""
        counts = torch.bincount(images.flatten(), minlength=256).double().cpu()  # exact, in any order
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts * values).sum() / counts.sum()
        deviation = ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(deviation if deviation else 1.0)  # all alike: nothing to divide by

    def forward(self, images):
        return (images - self.mean) / self.deviation
