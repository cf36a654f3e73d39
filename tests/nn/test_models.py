"""Models: parameters and functions against networks written out, layers from a recipe, dropout, and weights files."""

import json
import math

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from pipeline.dataset.views import apply_view
from pipeline.errors import StageError
from pipeline.nn.blocks import Dropout
from pipeline.nn.inference import as_input
from pipeline.nn.initialization import make_initial_network
from pipeline.nn.models.layers import Network as Layers
from pipeline.nn.models.layers import SqueezeExcite
from pipeline.nn.networks import (
    load_networks,
    make_network,
    require_trainable,
    serialize_network,
    serialize_networks,
)
from pipeline.recipes import config
from pipeline.recipes.config import ConfigError
from pipeline.recipes.settings import Model
from tests.conftest import digits_28

IMAGES, _ = digits_28(120)
X = torch.from_numpy(IMAGES)


def make_layers(*layers, **settings):
    return Layers(Model(name="layers", layers=layers, **settings))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # counted by hand: (inputs x kernel + 1) x outputs per convolution, (inputs + 1) x outputs per dense layer
        ("dropout_cnn", 1_805_130),
        ("quick", 135_530),
        ("standard", 541_898),
        ("ladder/lenet", 156 + 2_416 + 30_840 + 10_164 + 850),
        ("ladder/deeper", 320 + 18_496 + 36_928 + (64 * 4 * 4 + 1) * 100 + 1_010),
        ("keras/linear", 7_850),
        ("keras/vgg", 320 + 9_248 + 18_496 + 36_928 + (64 * 4 * 4 + 1) * 512 + 5_130),
        ("exploration/two_layer", 320 + (32 * 26 * 26 + 1) * 10),
        # torchvision's 138,357,544 and 61,100,840, with 10 outputs instead of 1,000
        ("transfer/vgg16", 138_357_544 - 990 * 4_097),
        ("transfer/alexnet", 61_100_840 - 990 * 4_097),
    ],
)
def test_number_of_parameters(name, parameters):
    network = require_trainable(config.load_recipe(name).model, 64)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


def test_dropout_cnn_is_the_published_network():
    """ReLU after dropout and pooling is the same function as the published order: ReLU, dropout, pooling."""
    network = make_network(Model()).train()
    inputs = as_input(X[:8])
    torch.manual_seed(1)
    logits = network(inputs)
    torch.manual_seed(1)
    values = inputs
    for layer in network.layers:
        if isinstance(layer, Dropout):
            values = layer(values.relu())
        elif not isinstance(layer, nn.ReLU):
            values = layer(values)
    assert torch.allclose(logits, values, atol=1e-5)


def test_lenet_is_the_published_network():
    network = make_network(config.load_recipe("ladder/lenet").model)
    plain = nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 120, 4), nn.Flatten(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )
    plain.load_state_dict(dict(zip(plain.state_dict(), network.state_dict().values(), strict=True)))
    images = torch.rand(5, 1, 28, 28)
    assert torch.equal(network(images), plain(images))


class TestLayers:
    def test_feature_maps(self):
        shapes = []
        network = make_network(config.load_recipe("exploration/three_layer").model)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda layer, inputs, outputs: shapes.append(tuple(outputs.shape[1:])))
        network(torch.zeros(1, 1, 28, 28))
        assert shapes == [(32, 26, 26), (64, 24, 24)]

    def test_every_kind_of_layer(self):
        network = make_layers(
            *("conv 4 5x5 stride 2 pad 2", "batch_norm", "relu", "max_pool 2", "squeeze_excite 2", "dropout"),
            *("conv 8 3x3 pad 1", "tanh", "avg_pool 2", "global_pool", "dense 7", "batch_norm"),
        )
        assert all(layer.training for layer in network.modules())
        assert network.layers[1].num_batches_tracked == 0
        assert network(torch.rand(3, 1, 28, 28)).shape == (3, 10)
        kinds = [type(layer).__name__ for layer in network.layers]
        assert kinds == [
            *("Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "SqueezeExcite", "Dropout", "Conv2d", "Tanh", "AvgPool2d"),
            *("AdaptiveAvgPool2d", "Flatten", "Linear", "BatchNorm1d", "Linear"),
        ]
        convolution = network.layers[0]
        assert (convolution.kernel_size, convolution.stride, convolution.padding) == ((5, 5), (2, 2), (2, 2))
        assert network.layers[-1].in_features == 7

    def test_squeeze_excite(self):
        layer, images = SqueezeExcite(6, 3), torch.rand(4, 6, 5, 5)
        first, _, second, _ = layer.weights
        for image, output in zip(images, layer(images), strict=True):
            means = image.mean((1, 2))
            weights = torch.sigmoid(second.weight @ (first.weight @ means + first.bias).relu() + second.bias)
            assert torch.allclose(output, image * weights.view(6, 1, 1), atol=1e-6)

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            (("max_pool 9", "max_pool 9"), "'max_pool 9' is larger than its input, 3x3"),
            (("conv 4 5x5 stride 9", "conv 4 5x5"), "'conv 4 5x5' is larger than its input, 3x3"),
            (("dense 5", "conv 4 3x3"), "'conv 4 3x3' requires an image"),
            (("dense 5", "global_pool"), "'global_pool' requires an image"),
            (("conv 4 3x5",), "'conv 4 3x5': the kernel must be square"),
        ],
    )
    def test_layers_that_do_not_fit_raise_an_error(self, layers, message):
        with pytest.raises(ConfigError, match=message):
            make_layers(*layers)
        with pytest.raises(ConfigError, match=message):
            require_trainable(Model(name="layers", layers=layers), 64)

    @pytest.mark.parametrize(
        ("layers", "trainable"),
        [
            (("dense 5", "batch_norm"), False),
            (("conv 4 5x5", "global_pool", "batch_norm"), False),
            (("conv 4 5x5", "batch_norm"), True),
            (("dense 5", "dropout"), True),
        ],
    )
    def test_batch_norm_may_require_batches_of_two(self, layers, trainable):
        model = Model(name="layers", layers=layers)
        require_trainable(model, 2)
        if trainable:
            require_trainable(model, 1)
        else:
            with pytest.raises(ConfigError, match=r"train\.batch_size is 1"):
                require_trainable(model, 1)


class TestPixels:
    def inputs(self, scaling):
        """What the first layer of a network gets for the images."""
        inputs, network = [], make_network(Model(name="layers", pixels=scaling), X)
        flatten = next(layer for layer in network.modules() if isinstance(layer, nn.Flatten))
        flatten.register_forward_hook(lambda layer, arguments, output: inputs.append(arguments[0]))
        network(X[:, None].float() / 255)
        return inputs[0][:, 0].numpy()

    def test_scaling(self):
        unit = IMAGES / 255
        assert np.allclose(self.inputs("unit"), unit)
        assert np.allclose(self.inputs("centred"), unit * 2 - 1, atol=1e-6)
        assert np.allclose(self.inputs("standardised"), (unit - unit.mean()) / unit.std(), atol=1e-5)

    def test_the_view_is_standardised(self):
        images = torch.from_numpy(digits_28(100)[0])
        network = make_initial_network(Model(name="layers", pixels="standardised", view="wide"), 0, images=images)
        inputs = network[0](as_input(apply_view(images, "wide")))
        assert inputs.mean().item() == pytest.approx(0, abs=1e-4) and inputs.std().item() == pytest.approx(1, abs=1e-3)

    def test_standardised_images_without_ink(self):
        network = make_network(Model(name="layers", pixels="standardised"), torch.zeros(3, 28, 28, dtype=torch.uint8))
        assert network(torch.zeros(2, 1, 28, 28)).isfinite().all()

    def test_are_saved_with_the_weights(self, tmp_path):
        model = Model(name="layers", layers=("relu",), pixels="standardised")
        network = make_network(model, X).eval()
        metadata = METADATA | {"model": model.model_dump(mode="json")}
        (tmp_path / "w.safetensors").write_bytes(serialize_network(network.state_dict(), metadata))
        (loaded,) = load_networks(tmp_path / "w.safetensors", "cpu")
        images = torch.rand(3, 1, 28, 28)
        assert torch.equal(network(images), loaded.network.eval()(images))


class TestDropout:
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_has_the_distribution_of_torch_dropout(self, p, memory_format):
        """Values are 0 with probability p, else value / (1 - p), independently; gradients likewise."""
        torch.manual_seed(0)
        values = torch.rand(50, 8, 10, 10).add(0.5).contiguous(memory_format=memory_format).requires_grad_()
        output = Dropout(p)(values)
        output.sum().backward()
        kept = output != 0
        assert torch.allclose(output[kept], values[kept] / (1 - p))
        assert torch.equal(values.grad != 0, kept)
        std = (p * (1 - p) / kept.numel()) ** 0.5
        assert abs((~kept).float().mean().item() - p) < 5 * std
        flat = kept.permute(0, 2, 3, 1).flatten().float() - (1 - p)
        for lag in (1, 2, 3, 4, 8, 100):  # neighbours are not correlated
            assert abs((flat[lag:] * flat[:-lag]).mean().item()) < 5 * p * (1 - p) / kept.numel() ** 0.5

    def test_draws_new_masks_from_the_seed(self):
        values, layer = torch.ones(1001), Dropout(0.5)
        torch.manual_seed(0)
        first, second = layer(values), layer(values)
        torch.manual_seed(0)
        assert torch.equal(layer(values), first) and not torch.equal(first, second)

    def test_returns_its_input_in_evaluation_mode_and_for_a_rate_of_0(self):
        values = torch.ones(100)
        assert Dropout(0.5).eval()(values) is values and Dropout(0.0)(values) is values

    def test_accepts_any_memory_layout(self):
        values = torch.rand(8, 6, 4, 2).add(1).permute(2, 0, 3, 1)[:, ::2]
        output = Dropout(0.5)(values)
        assert output.shape == values.shape
        assert torch.allclose(output[output != 0], 2 * values[output != 0])


METADATA = {"model": {"name": "small_cnn", "dropout": 0.2}, "precision": "fp32", "epoch": 3}
METADATA |= {"checkpoint_selection": "last", "fit_all": False, "fold": None, "seed": 0}


class TestWeightsFile:
    @staticmethod
    def assert_equal(loaded, network):
        state_dict = loaded.network.state_dict()
        assert all(torch.equal(tensor, state_dict[name]) for name, tensor in network.state_dict().items())

    def test_of_one_network(self, tmp_path):
        network = make_network(Model(name="small_cnn"))
        path = tmp_path / "w.safetensors"
        path.write_bytes(serialize_network(network.state_dict(), METADATA))
        (loaded,) = load_networks(path, "cpu")
        assert loaded.metadata == METADATA
        self.assert_equal(loaded, network)

    def test_of_several_networks(self, tmp_path):
        networks, files = [make_network(Model(name="small_cnn")) for _ in range(2)], {}
        for seed, network in enumerate(networks):
            path = tmp_path / f"{seed}.safetensors"
            path.write_bytes(serialize_network(network.state_dict(), METADATA | {"seed": seed}))
            files[f"seed{seed}"] = path
        path = tmp_path / "all.safetensors"
        path.write_bytes(serialize_networks(files))
        loaded = load_networks(path, "cpu")
        assert [item.metadata for item in loaded] == [METADATA | {"seed": seed} for seed in (0, 1)]
        for item, network in zip(loaded, networks, strict=True):
            self.assert_equal(item, network)
        with safetensors.safe_open(path, "pt") as file:
            assert list(json.loads(file.metadata()["metadata"])["networks"]) == ["seed0", "seed1"]

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_weight_that_is_no_finite_number_is_refused(self, tmp_path, value):
        weights = make_network(Model(name="small_cnn")).state_dict()
        next(iter(weights.values())).view(-1)[3] = value
        path = tmp_path / "w.safetensors"
        path.write_bytes(serialize_network(weights, METADATA | {"model": {"name": "small_cnn"}}))
        with pytest.raises(StageError, match="a weight is not a finite number"):
            load_networks(path, "cpu")

    def test_a_file_that_describes_another_network_is_refused(self, tmp_path):
        """Before memory is allocated for it: this one has 24 GB of weights."""
        metadata = METADATA | {"model": {"name": "layers", "layers": ["dense 9999"] * 60}}
        path = tmp_path / "w.safetensors"
        for weights in (make_network(Model(name="small_cnn")).state_dict(), {}):
            path.write_bytes(serialize_network(weights, metadata))
            with pytest.raises(StageError, match="does not contain the weights of layers"):
                load_networks(path, "cpu")
