"""Inference: probabilities against plain computations, independent of the batch size and the order of the images."""

import io

import numpy as np
import pytest
import torch
from tqdm import tqdm

from pipeline.dataset.views import apply_view
from pipeline.nn import inference, precision
from pipeline.nn.networks import LoadedNetwork, make_network
from pipeline.recipes.settings import Model, Predict
from tests.conftest import digits_28

IMAGES = torch.from_numpy(digits_28(101)[0])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return make_network(Model(name="layers", layers=("conv 8 5x5 stride 2", "batch_norm", "relu", "dropout")))


def predict(network, images=IMAGES, view="plain", precision="fp32", **settings):
    loaded = LoadedNetwork(network, {"model": {"view": view}, "precision": precision})
    return inference.predict_probabilities(loaded, images, Predict(**settings), "cpu")


def shift_by_pixel(image, right, down):
    moved = np.zeros_like(image)
    for y in range(28):
        for x in range(28):
            if 0 <= y - down < 28 and 0 <= x - right < 28:
                moved[y, x] = image[y - down, x - right]
    return moved


def test_only_images_with_a_small_margin_are_shifted(network, monkeypatch):
    shifts = ((0, 0), (2, -1), (-3, 4))
    plain, mean = predict(network), predict(network, shifts=shifts)
    ordered = np.sort(plain, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    limit = float(np.median(margins))
    sizes, shift = [], inference._shift
    monkeypatch.setattr(
        inference, "_shift", lambda images, *pixels: sizes.append(len(images)) or shift(images, *pixels)
    )
    mixed = predict(network, shifts=shifts, shift_margin=limit)
    assert sizes == [101, 51, 51]
    assert np.array_equal(mixed[margins > limit], plain[margins > limit])
    assert mixed[margins <= limit] == pytest.approx(mean[margins <= limit], abs=1e-6)
    assert np.array_equal(predict(network, shifts=shifts, shift_margin=0.0), plain)


def test_folded_batch_norm_gives_the_same_logits(network):
    for model in (network, make_network(Model(name="medium_cnn")), make_network(Model(name="small_cnn"))):
        inputs = inference.as_input(IMAGES)
        with torch.no_grad():
            for _ in range(3):  # running statistics that are not those of an untrained network
                model.train()(inputs)
            expected = model.eval()(inputs)
        fused = inference.fuse_batch_norm(model)
        n_layers = [sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in kind.modules()) for kind in (model, fused)]
        assert n_layers[1] < n_layers[0]
        with torch.no_grad():
            assert torch.allclose(fused(inputs), expected, atol=1e-5)
            assert torch.equal(model(inputs), expected)  # unchanged


def test_probabilities_are_the_mean_over_shifted_copies(network):
    shifts = ((0, 0), (2, -1), (-3, 4))
    network.train()  # inference uses a copy in evaluation mode
    probabilities = predict(network, IMAGES[:5], shifts=shifts)
    assert probabilities.dtype == np.float32 and network.training
    network.eval()
    for image, row in zip(IMAGES[:5].numpy(), probabilities, strict=True):
        copies = np.stack([shift_by_pixel(image, *shift) for shift in shifts])
        with torch.no_grad():
            expected = network(torch.from_numpy(copies)[:, None].float() / 255).softmax(1).mean(0)
        assert row == pytest.approx(expected.numpy(), abs=1e-5)


def test_the_view_of_the_network_is_applied(network):
    deskewed = predict(network, view="deskewed")
    assert np.array_equal(deskewed, predict(network, apply_view(IMAGES, "deskewed")))
    assert not np.allclose(deskewed, predict(network), atol=1e-3)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_the_precision_of_the_network_is_applied_if_it_is_fast(network, monkeypatch, has_bf16):
    monkeypatch.setattr(precision, "is_fast", lambda name, device: name == "fp32" or has_bf16)
    difference = np.abs(predict(network, precision="bf16") - predict(network)).max()
    assert 0 < difference < 0.05 if has_bf16 else difference == 0


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_no_row_is_lost_or_moved(network, monkeypatch, batch_size):
    expected = predict(network)
    monkeypatch.setitem(inference.BATCH_SIZES, "cpu", batch_size)
    assert predict(network) == pytest.approx(expected, abs=1e-5)
    order = torch.randperm(101)
    assert predict(network, IMAGES[order]) == pytest.approx(expected[order], abs=1e-5)


def test_progress_counts_images(network):
    with tqdm(file=io.StringIO()) as progress:
        inference.predict_logits(network, IMAGES, "cpu", "fp32", progress)
    assert progress.n == 101
