"""generators: inputs, images, and the discriminator's use of the label."""

import numpy as np
import pytest
import torch

from pipeline.extras.generate.generators import Discriminator, as_generator_input, as_pixels, make_generator
from pipeline.recipes.settings import Gan

SMALL = {"latent_size": 7, "generator_width": 4, "discriminator_width": 4}
LABELS = torch.tensor([3, 0, 9])


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_shapes(architecture, projection, is_normalized):
    gan = Gan(architecture=architecture, projection=projection, spectral_norm=is_normalized, **SMALL)
    inputs = as_generator_input(torch.randn(3, 7), LABELS)
    images = make_generator(gan)(inputs)
    assert images.shape == (3, 1, 28, 28) and images.abs().max() <= 1
    discriminator = Discriminator(gan).eval()
    logits = discriminator(images, LABELS)
    assert logits.shape == (3,)
    assert not torch.allclose(logits, discriminator(images, torch.tensor([4, 1, 8])))  # the label matters


def test_inputs_are_noise_and_one_hot_labels():
    noise = torch.randn(3, 7)
    inputs = as_generator_input(noise, LABELS)
    assert torch.equal(inputs[:, :7], noise) and torch.equal(inputs[:, 7:], torch.eye(10)[LABELS])


def test_pixels_are_rounded_gray_levels():
    values = torch.tensor([-1.0, 1.0, 0.0, -1.2, 1.2, 2 * 100.4 / 255 - 1, 2 * 100.6 / 255 - 1])
    images = torch.zeros(len(values), 1, 28, 28) + values[:, None, None, None]
    assert as_pixels(images)[:, 5, 5].tolist() == [0, 255, 128, 0, 255, 100, 101]


def test_projection_adds_the_product_of_the_features_and_the_vector_of_the_class():
    discriminator = Discriminator(Gan(architecture="convolutional", projection=True, **SMALL)).eval()
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    features = discriminator.features(images).detach().numpy()
    weight, bias = (parameter.detach().numpy() for parameter in discriminator.output.parameters())
    classes = discriminator.classes.weight.detach().numpy()
    expected = [features[i] @ weight[0] + bias[0] + features[i] @ classes[LABELS[i]] for i in range(3)]
    assert np.allclose(discriminator(images, LABELS).detach().numpy(), expected, atol=1e-5)


def test_spectral_norm_divides_by_the_largest_singular_value():
    discriminator = Discriminator(Gan(architecture="dense", spectral_norm=True, **SMALL))
    for _ in range(100):  # power iterations
        discriminator(torch.rand(2, 1, 28, 28), LABELS[:2])
    for layer in discriminator.eval().features[::3]:
        assert np.linalg.svd(layer.weight.detach().numpy(), compute_uv=False)[0] == pytest.approx(1, abs=0.02)
