"""Pixel scaling in front of a network (`model.pixels`)."""

import torch
from torch import Tensor, nn

from pipeline.shapes import Float, UInt8


class Pixels(nn.Module):
    """Subtracts a mean from the pixels and divides by a standard deviation; both are saved with the weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(std))

    def measure(self, images: UInt8[Tensor, "n 28 28"]) -> None:
        """Set mean and standard deviation to those of the images, scaled to [0, 1]."""
        counts = torch.bincount(images.flatten(), minlength=256).double().cpu()  # exact, in any order
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts * values).sum() / counts.sum()
        std = ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(std if std else torch.ones(()))  # avoid a division by 0 if all pixels are equal

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 1 28 28"]:
        return (images - self.mean) / self.deviation


def scale_pixels(network: nn.Module, scaling: str, images: UInt8[Tensor, "n 28 28"] | None) -> nn.Module:
    """Put the scaling of `model.pixels` in front of a network.

    images: the training images, which "standardised" takes mean and standard deviation from; None if they are loaded
    with the weights.
    """
    if scaling == "unit":
        return network
    pixels = Pixels(0.5, 0.5)
    if scaling == "standardised" and images is not None:
        pixels.measure(images)
    return nn.Sequential(pixels, network)
