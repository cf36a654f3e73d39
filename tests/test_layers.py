"""Networks spelled out in a recipe, their pixels, and the settings of training that the ladders brought."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import augmentation, recipe, training
from pipeline.models import load_weights, make, save_weights
from pipeline.models.layers import Layers, SqueezeExcite
from pipeline.settings import Affine, Model, RecipeError, Train
from tests.conftest import digits_28

IMAGES, LABELS = digits_28(120)
X, Y = torch.from_numpy(IMAGES), torch.from_numpy(LABELS.astype(np.int64))


def spelled(*layers, **more):
    return Layers(Model("layers", layers=layers, **more))


def test_lenet_is_the_published_one():
    """The same weights in a network written out give the same logits."""
    made = make(recipe.load("ladder/lenet").model)
    by_hand = nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 120, 4), nn.Flatten(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), made.state_dict().values(), strict=True)))
    images = torch.rand(5, 1, 28, 28)
    assert torch.equal(made(images), by_hand(images))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # counted by hand: (inputs x kernel + 1) x outputs a convolution, (inputs + 1) x outputs a dense layer
        ("ladder/lenet", 156 + 2_416 + 30_840 + 10_164 + 850),
        ("ladder/deeper", 320 + 18_496 + 36_928 + (64 * 4 * 4 + 1) * 100 + 1_010),
        ("keras/linear", 7_850),
        ("keras/vgg", 320 + 9_248 + 18_496 + 36_928 + (64 * 4 * 4 + 1) * 512 + 5_130),
        ("exploration/two_layer", 320 + (32 * 26 * 26 + 1) * 10),
    ],
)
def test_parameters(name, parameters):
    assert sum(weight.numel() for weight in make(recipe.load(name).model).parameters()) == parameters


def test_feature_maps_of_the_exploration():
    seen = []
    network = make(recipe.load("exploration/three_layer").model)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape[1:])))
    network(torch.zeros(1, 1, 28, 28))
    assert seen == [(32, 26, 26), (64, 24, 24)]


def test_every_kind_of_layer():
    made = spelled(
        *("conv 4 5x5 stride 2 pad 2", "batch_norm", "relu", "max_pool 2", "squeeze_excite 2", "dropout"),
        *("conv 8 3x3 pad 1", "tanh", "avg_pool 2", "global_pool", "dense 7", "batch_norm"),
    )
    assert made(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert made.layers[-1].in_features == 7


def test_squeeze_excite_by_hand():
    layer, images = SqueezeExcite(6, 3), torch.rand(4, 6, 5, 5)
    first, _, second, _ = layer.weights
    for image, out in zip(images, layer(images), strict=True):
        means = image.mean((1, 2))
        weights = torch.sigmoid(second.weight @ (first.weight @ means + first.bias).relu() + second.bias)
        assert torch.allclose(out, image * weights.view(6, 1, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["max_pool 9", "max_pool 9"], "'max_pool 9' is larger than the 3x3 that is left"),
        (["conv 4 5x5 stride 9", "conv 4 5x5"], "'conv 4 5x5' is larger than the 3x3 that is left"),
        (["dense 5", "conv 4 3x3"], "'conv 4 3x3' wants an image"),
        (["conv 4 3x5"], "only square ones"),
    ],
)
def test_layers_that_do_not_fit_are_one_line(command, tmp_path, layers, words):
    with pytest.raises(RecipeError, match=words):
        spelled(*layers)
    given = ("--set", "model.name=layers", "--set", f"model.layers={layers}".replace("'", '"'))
    run = command("--stage", "all", "--recipe", "ladder/lenet", "--data", "sample", *given, "--workspace", tmp_path)
    assert run.code == 2 and words in run.err and run.err.count("\n") == 1


@pytest.mark.parametrize(
    ("layers", "fits"),
    [
        (["dense 5", "batch_norm"], False),
        (["conv 4 5x5", "global_pool", "batch_norm"], False),
        (["conv 4 5x5", "batch_norm"], True),
        (["dense 5", "dropout"], True),
    ],
)
def test_batches_of_one_row_where_batch_norm_cannot_measure_them(command, finished, layers, fits):
    given = ("--set", "train.batch=1", "--set", "model.name=layers", "--set", f"model.layers={json.dumps(layers)}")
    short = ("--set", "train.epochs=1", "--set", "train.focus=1.0", "--workspace", finished)
    run = command("--stage", "train", "--recipe", "ladder/lenet", *given, *short)
    assert (run.code, run.err.count("\n")) == ((0, 0) if fits else (2, 1)), run.err
    assert fits or "train.batch is 1" in run.err
    if not fits:
        run = command("--stage", "compare", "--recipe", "ladder/lenet", *given, *short, "--seeds", "1")
        assert run.code == 2 and "ladder/lenet: train.batch is 1" in run.err


@pytest.mark.parametrize("text", ["conv 32", "conv 32 3", "conv 0 3x3", "dense", "Relu", "relu 3", "max_pool 1", "x"])
def test_unknown_layers_are_refused(text):
    with pytest.raises(RecipeError, match=r"model\.layers is"):
        recipe.load("ladder/lenet", [f'model.layers=["{text}"]'])


@pytest.mark.parametrize(
    ("name", "assignments", "words"),
    [
        ("quick", ["train.momentum=0.5"], "train.momentum counts only where train.optimizer is sgd"),
        ("quick", ["train.decay=0.5"], "train.schedule is exponential"),
        ("quick", ["train.steps=[[2, 0.1]]"], "train.schedule is steps"),
        ("quick", ["train.average_decay=0.5"], "train.average is more than 0"),
        ("quick", ['model.layers=["relu"]'], "model.name is layers"),
        ("ladder/lenet", ["model.dropout=0.3"], "model.layers has a dropout"),
    ],
)
def test_what_nobody_would_read_is_refused(name, assignments, words):
    with pytest.raises(RecipeError, match=words):
        recipe.load(name, assignments)


class TestPixels:
    def inputs(self, kind):
        seen, network = [], make(Model("layers", pixels=kind), X)
        next(layer for layer in network.modules() if isinstance(layer, nn.Flatten)).register_forward_hook(
            lambda *call: seen.append(call[1][0])
        )
        network(X[:, None].float() / 255)
        return seen[0][:, 0].numpy()

    def test_by_hand(self):
        unit = IMAGES / 255
        assert np.allclose(self.inputs("unit"), unit)
        assert np.allclose(self.inputs("centred"), unit * 2 - 1, atol=1e-6)
        assert np.allclose(self.inputs("standardised"), (unit - unit.mean()) / unit.std(), atol=1e-5)

    def test_weights_keep_what_was_measured(self, tmp_path):
        settings = Model("layers", layers=("relu",), pixels="standardised")
        network = make(settings, X).eval()
        about = {"model": vars(settings), "precision": "fp32", "epoch": 1}
        (tmp_path / "w.safetensors").write_bytes(save_weights(network.state_dict(), about))
        ((again, _),) = load_weights(tmp_path / "w.safetensors", "cpu")
        images = torch.rand(3, 1, 28, 28)
        assert torch.equal(network(images), again.eval()(images))


def test_flip_is_left_to_right_for_half_of_the_images():
    torch.manual_seed(0)
    images = torch.from_numpy(IMAGES[:100, None] / 255).float()
    made = augmentation.random_affine(images, Affine(flip=True))
    flipped = [torch.allclose(out, image.flip(2), atol=1e-4) for out, image in zip(made, images, strict=True)]
    same = [torch.allclose(out, image, atol=1e-4) for out, image in zip(made, images, strict=True)]
    assert all(one or two for one, two in zip(flipped, same, strict=True))
    assert 30 < sum(flipped) < 70


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({"optimizer": "sgd", "momentum": 0.9}, lambda w: torch.optim.SGD(w, 0.01, momentum=0.9, weight_decay=0.1)),
        ({"optimizer": "rmsprop"}, lambda w: torch.optim.RMSprop(w, 0.01, weight_decay=0.1)),
        ({"optimizer": "adagrad"}, lambda w: torch.optim.Adagrad(w, 0.01, weight_decay=0.1)),
        ({"optimizer": "adadelta"}, lambda w: torch.optim.Adadelta(w, 0.01, weight_decay=0.1)),
    ],
)
def test_optimizers_against_a_plain_loop(settings, plain):
    """All rows a step: their order changes sums in the last digits alone."""
    train = Train(
        epochs=3, batch=120, learning_rate=0.01, weight_decay=0.1, keep="last", precision="fp32", **settings
    )  # fmt: skip
    torch.manual_seed(0)
    one = spelled("dense 20", "tanh")
    two = spelled("dense 20", "tanh")
    two.load_state_dict(one.state_dict())
    state, *_ = training.fit(one, (X, Y), None, train, Affine(), "cpu", "fp32", None, lambda c: None, False)
    optimizer = plain(two.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(two(X[:, None].float() / 255), Y).backward()
        optimizer.step()
    for name, weight in two.state_dict().items():
        assert torch.allclose(state[name], weight, atol=1e-5), name


def test_an_average_with_a_decay_by_hand():
    train = Train(
        epochs=4, batch=120, learning_rate=0.01, keep="last", precision="fp32", average=1, average_decay=0.5
    )  # fmt: skip
    torch.manual_seed(0)
    network, seen = spelled("dense 20", "tanh"), []

    def after_epoch(checkpoint):  # a step each
        seen.append(checkpoint["network"]["layers.1.weight"].clone())

    state, *_ = training.fit(network, (X, Y), None, train, Affine(), "cpu", "fp32", None, after_epoch, False)
    expected = seen[0]
    for weight in seen[1:]:
        expected = 0.5 * expected + 0.5 * weight
    assert torch.allclose(state["layers.1.weight"], expected, atol=1e-7)
    plain = dataclasses.replace(train, average=0, average_decay=0)
    torch.manual_seed(0)
    last, *_ = training.fit(
        spelled("dense 20", "tanh"), (X, Y), None, plain, Affine(), "cpu", "fp32", None, lambda c: None, False
    )
    assert torch.equal(last["layers.1.weight"], seen[-1]) and not torch.equal(last["layers.1.weight"], expected)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_trains_one_small_epoch(name):
    loaded = recipe.load(name, ["train.epochs=1", "train.batch=20"])
    network = make(loaded.model, X)
    before = [weight.clone() for weight in network.parameters()]
    held = None if loaded.train.fit_all else (X[40:60], Y[40:60])
    state, history, answers, _ = training.fit(
        network, (X[:40], Y[:40]), held, loaded.train, loaded.affine, "cpu", "fp32", None, lambda c: None, False, X[:7]
    )
    assert len(history) == 1 and answers[0].shape == (7,)
    assert any(not torch.equal(one, two) for one, two in zip(before, network.parameters(), strict=True))
    assert state.keys() == network.state_dict().keys()
