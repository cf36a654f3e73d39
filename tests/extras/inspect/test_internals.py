"""network_internals: layers, features, weights, gradients and occlusion, each against a plain computation."""

import numpy as np
import pytest
import torch

from pipeline.extras.inspect import internals
from pipeline.nn.inference import as_input, last_layer_inputs
from pipeline.nn.networks import flatten_layers, make_network
from pipeline.nn.trainer import seed_everything
from pipeline.recipes.config import load_recipe, recipe_names
from pipeline.recipes.settings import Model
from tests.conftest import digits_28

IMAGES = torch.from_numpy(digits_28(60)[0])


def network_of(recipe):
    seed_everything(1)
    return make_network(load_recipe(recipe).model, IMAGES).eval()


@pytest.mark.parametrize(
    "recipe", [name for name in recipe_names() if not load_recipe(name).model.has_frozen_extractor]
)
def test_layers_in_order_are_the_network(recipe):
    network = network_of(recipe)
    logits = network(as_input(IMAGES[:1]))[0].detach().numpy()
    layers = flatten_layers(network)
    outputs = internals.layer_outputs(network, IMAGES[0])
    assert np.allclose(outputs[-1][1], logits, atol=1e-5)
    features = torch.from_numpy(last_layer_inputs(network, IMAGES[:3]))
    assert np.allclose((features @ layers[-1].weight.T + layers[-1].bias)[0].detach(), logits, atol=1e-4)
    assert not any(isinstance(layer, torch.nn.Sequential) for layer in layers)
    assert len(outputs) == sum(bool(internals.describe_layer(layer)) for layer in layers)


def test_every_kind_of_layer_is_described():
    layers = ("conv 8 3x3", "batch_norm", "relu", "squeeze_excite 2", "avg_pool 2", "conv 8 3x3", "tanh", "max_pool 2")
    layers += ("global_pool", "dropout", "dense 12", "batch_norm")
    network = make_network(Model(name="layers", layers=layers, pixels="centred"))
    descriptions = [internals.describe_layer(layer) for layer in flatten_layers(network)]
    assert [description for description in descriptions if description] == [
        "scaled pixels", "conv 3x3, 8", "batch norm", "ReLU", "squeeze, excite", "average pool 2", "conv 3x3, 8",
        "tanh", "max pool 2", "global average", "dense 12", "batch norm", "dense 10",
    ]  # fmt: skip
    assert descriptions.count("") == 2  # dropout and flattening


def test_weights_are_those_of_the_network():
    network = network_of("ladder/lenet")
    weights = internals.layer_weights(network)
    parameters = dict(network.named_parameters())
    assert list(weights) == [name for name, parameter in parameters.items() if parameter.ndim > 1]
    for number, (name, (description, values)) in enumerate(weights.items(), 1):
        assert description.startswith(f"{number}: ")
        assert np.array_equal(values, parameters[name].detach().numpy().ravel())
    assert weights["layers.0.weight"][0] == "1: conv 5x5, 6"
    assert internals.last_layer_weights(network).shape == (10, 84)


def test_the_first_layers_weights_are_images():
    assert internals.first_layer_filters(network_of("ladder/lenet")).shape == (6, 5, 5)
    assert internals.first_layer_filters(network_of("keras/linear")).shape == (10, 28, 28)
    pooled = make_network(Model(name="layers", layers=("avg_pool 2", "dense 32", "relu")))
    assert internals.first_layer_filters(pooled).shape == (32, 14, 14)


def test_input_gradients_are_differences(monkeypatch):
    network, digits = network_of("ladder/lenet").double(), np.array([3, 8])  # with tanh: smooth
    monkeypatch.setattr(internals, "as_input", lambda images: images[:, None].double() / 255)
    gradients = internals.input_gradients(network, IMAGES[:2], digits)
    for image in (0, 1):
        for row, column in ((5, 9), (14, 14), (20, 11)):
            pixels = IMAGES[image].double()[None, None].repeat(2, 1, 1, 1) / 255
            pixels[0, 0, row, column] += 1e-4
            pixels[1, 0, row, column] -= 1e-4
            above, below = network(pixels)[:, digits[image]].tolist()
            assert gradients[image, row, column] == pytest.approx((above - below) / 2e-4, rel=1e-4, abs=1e-9)


def test_occlusion_is_that_of_a_plain_loop():
    network = network_of("ladder/lenet")
    occlusion = internals.occlusion(network, IMAGES[4], 6)
    before = network(as_input(IMAGES[4:5])).softmax(1)[0, 6].item()
    for row, column in ((0, 0), (13, 14), (27, 3)):
        occluded = IMAGES[4].clone()
        for y in range(28):
            for x in range(28):
                if abs(y - row) <= 2 and abs(x - column) <= 2:
                    occluded[y, x] = 0
        after = network(as_input(occluded[None])).softmax(1)[0, 6].item()
        assert occlusion[row, column] == pytest.approx(before - after, abs=1e-6)
    assert occlusion.shape == (28, 28)


def test_quantiles_of_a_histogram_are_within_a_bin():
    values = np.random.default_rng(0).normal(size=5000)
    limit = np.abs(values).max()
    counts, _ = np.histogram(values, 100, (-limit, limit))
    quantiles = internals.histogram_quantiles(counts, limit)
    assert np.abs(quantiles - np.quantile(values, internals.QUANTILES)).max() < 2 * limit / 100
