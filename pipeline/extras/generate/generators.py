"""The networks of the conditional GANs: generators of digits of a requested class, and discriminators.

Images have values in [-1, 1]. A generator's input is a row of noise followed by the one-hot label.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pipeline.recipes.settings import Gan
from pipeline.shapes import Float, Float32, Int64, UInt8

N_CLASSES = 10
SLOPE = 0.2  # of leaky ReLU for negative values


def as_generator_input(
    noise: Float[Tensor, "n latent"], labels: Int64[Tensor, " n"]
) -> Float[Tensor, "n latent_and_classes"]:
    """The input of a generator: noise, then the one-hot labels."""
    return torch.cat([noise, one_hot(labels)], 1)


def one_hot(labels: Int64[Tensor, " n"]) -> Float32[Tensor, "n classes"]:
    """Ten values for each label: 1 for the class, 0 for the others. PyTorch's one_hot reads values on a CPU."""
    return (labels[:, None] == torch.arange(N_CLASSES, device=labels.device)).float()


def as_pixels(images: Float[Tensor, "n 1 28 28"]) -> UInt8[Tensor, "n 28 28"]:
    """Convert generated images to gray levels."""
    return images.squeeze(1).float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def make_generator(gan: Gan) -> nn.Module:
    """Create a generator with random weights: inputs of noise and label (n, latent + 10) to images (n, 1, 28, 28)."""
    n_inputs, width = gan.latent_size + N_CLASSES, gan.generator_width
    if gan.architecture == "dense":
        sizes = (n_inputs, width, 2 * width, 4 * width)
        hidden = [layer for pair in itertools.pairwise(sizes) for layer in _dense_block(*pair)]
        return nn.Sequential(*hidden, nn.Linear(4 * width, 28 * 28), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))
    return nn.Sequential(
        nn.Linear(n_inputs, 4 * width * 7 * 7, bias=False),
        nn.Unflatten(1, (4 * width, 7, 7)),
        nn.BatchNorm2d(4 * width),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False),  # 14x14
        nn.BatchNorm2d(2 * width),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),  # 28x28
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 1, 3, 1, 1),
        nn.Tanh(),
    )


def _dense_block(n_inputs: int, n_outputs: int) -> list[nn.Module]:
    return [nn.Linear(n_inputs, n_outputs, bias=False), nn.BatchNorm1d(n_outputs), nn.LeakyReLU(SLOPE, inplace=True)]


class Discriminator(nn.Module):
    """Maps images and their labels to logits: positive for images that look real and of their class.

    Without `gan.projection`, the label is an input: ten more values in front of dense layers, ten more channels in
    front of convolutions. With it, the logit is a function of the image's features plus their inner product with a
    learned vector of the class (T. Miyato and M. Koyama, cGANs with Projection Discriminator, 2018).
    """

    def __init__(self, gan: Gan) -> None:
        super().__init__()
        self.is_dense, self.has_projection = gan.architecture == "dense", gan.projection
        width, n_label_inputs = gan.discriminator_width, 0 if gan.projection else N_CLASSES
        normalize: Callable[[nn.Module], nn.Module] = spectral_norm if gan.spectral_norm else nn.Identity()
        if self.is_dense:
            sizes = [28 * 28 + n_label_inputs, 4 * width, 2 * width, width]
            layers: list[nn.Module] = []
            for n_inputs, n_outputs in itertools.pairwise(sizes):
                layers += [normalize(nn.Linear(n_inputs, n_outputs)), nn.LeakyReLU(SLOPE), nn.Dropout(gan.dropout)]
            n_features = width
        else:
            layers = []
            for n_inputs, n_outputs in ((1 + n_label_inputs, width), (width, 2 * width), (2 * width, 4 * width)):
                convolution = nn.Conv2d(n_inputs, n_outputs, 4, 2, 1)  # 14x14, 7x7, 3x3
                layers += [normalize(convolution), nn.LeakyReLU(SLOPE), nn.Dropout(gan.dropout)]
            layers.append(nn.Flatten())
            n_features = 4 * width * 3 * 3
        self.features = nn.Sequential(*layers)
        self.output = normalize(nn.Linear(n_features, 1))
        if gan.projection:
            self.classes = normalize(nn.Embedding(N_CLASSES, n_features))

    def forward(self, images: Float[Tensor, "n 1 28 28"], labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        values = images.flatten(1) if self.is_dense else images
        if not self.has_projection:
            classes = one_hot(labels)
            if not self.is_dense:
                classes = classes[:, :, None, None].expand(-1, -1, 28, 28)
            values = torch.cat([values, classes], 1)
        features = self.features(values)
        logits: Tensor = self.output(features).squeeze(1)
        return logits + (self.classes(labels) * features).sum(1) if self.has_projection else logits
