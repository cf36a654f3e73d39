"""The network before its first training step."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dataset.views import apply_view
from pipeline.nn.imagenet_weights import read_weights
from pipeline.nn.networks import make_network
from pipeline.recipes.settings import Model
from pipeline.shapes import UInt8


def seed_everything(*numbers: int) -> None:
    """Seed PyTorch's random number generators on all devices with a sequence of numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def make_initial_network(
    model: Model,
    seed: int,
    weights_file: Path | None = None,
    images: UInt8[Tensor, "n 28 28"] | None = None,
) -> nn.Module:
    """Create a network with random weights that depend on the seed.

    weights_file: with ImageNet's weights, which replace the random ones of all layers except the last.
    images: the training images, for `model.pixels`; the model's view is applied to them.
    """
    if images is not None and model.pixels == "standardised":  # the only scaling that depends on them
        images = apply_view(images, model.view)
    seed_everything(seed)
    network = make_network(model, images)
    if weights_file:
        network.load_state_dict(read_weights(weights_file, model), strict=False)
    return network
