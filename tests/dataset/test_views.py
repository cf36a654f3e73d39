"""Views against scipy, one image at a time; and networks that are trained and evaluated on their own views."""

import json
from typing import get_args

import numpy as np
import pytest
import scipy.ndimage
import torch

from pipeline.dataset.views import MAX_SLANT, MAX_STRETCH, MIN_STRETCH, VIEWS, apply_view
from pipeline.nn.networks import load_networks
from pipeline.recipes.settings import ViewName
from tests.conftest import TINY, digits_28, write_tables

IMAGES, LABELS = digits_28(500)


def moments(image):
    """Centre (down, right) and second moments of the ink, by numpy's averages."""
    rows, columns = np.mgrid[:28, :28]
    ink = image.astype(float)
    down, right = np.average(rows, weights=ink), np.average(columns, weights=ink)
    y, x = rows - down, columns - right
    return down, right, *(np.average(product, weights=ink) for product in (x * x, x * y, y * y))


def view_with_scipy(image, deskew, std):
    down, right, xx, xy, yy = moments(image)
    slant = np.clip(xy / yy, -MAX_SLANT, MAX_SLANT) if deskew else 0
    width = np.sqrt(xx - 2 * slant * xy + slant**2 * yy)
    stretch = np.clip(std / width, MIN_STRETCH, MAX_STRETCH) if std else 1
    matrix = np.array([[1, 0], [slant, 1 / stretch]])
    offset = np.array([down, right]) - matrix @ [13.5, 13.5]
    result = scipy.ndimage.affine_transform(image.astype(float), matrix, offset, order=1, mode="grid-constant")
    return np.clip(result, 0, 255)


def test_settings_list_all_views():
    assert tuple(VIEWS) == get_args(ViewName)


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "plain"])
def test_values_are_those_of_scipy(name):
    views = apply_view(torch.from_numpy(IMAGES[:60]), name).numpy()
    expected = np.array([view_with_scipy(image, *VIEWS[name]) for image in IMAGES[:60]])
    assert views.dtype == np.uint8 and np.abs(views - expected).max() < 0.6


def test_slant_is_removed_and_width_normalised():
    for image in apply_view(torch.from_numpy(IMAGES[:60]), "deskewed_even").numpy():
        down, right, xx, xy, yy = moments(image)
        assert abs(down - 13.5) < 0.3 and abs(right - 13.5) < 0.3
        assert abs(xy / yy) < 0.1 and 3.4 < xx**0.5 < 4.6


@pytest.mark.parametrize("name", VIEWS)
def test_images_are_independent_and_empty_ones_stay_empty(name):
    images = torch.from_numpy(IMAGES[:5]).clone()
    images[2] = 0
    views = apply_view(images, name)
    assert not views[2].any()
    assert all(torch.equal(apply_view(image[None], name)[0], view) for image, view in zip(images, views, strict=True))


def predict(network, images):
    network.eval()
    with torch.no_grad():
        return network(torch.from_numpy(images)[:, None].float() / 255).softmax(1).numpy()


def test_networks_are_trained_and_evaluated_on_their_own_views(command, tables, tmp_path):
    write_tables(tmp_path / "data/raw", tables)
    assignments = ("ensemble.views=['plain', 'deskewed']", "split.folds=2", "train.precision=fp32", "train.epochs=1")
    options = [word for assignment in assignments for word in ("--set", assignment)]
    run = command("--stage", "all", *TINY, *options, "--workspace", tmp_path, "--device", "cpu")
    assert run.code == 0, run.err
    networks = load_networks(tmp_path / "data/runs/quick/train/weights.safetensors", "cpu")
    names = [(loaded.metadata["model"]["view"], loaded.metadata["fold"]) for loaded in networks]
    assert names == [("plain", 0), ("plain", 1), ("deskewed", 0), ("deskewed", 1)]
    # The same seed and rows, but another view: other weights.
    plain, deskewed = (networks[i].network.state_dict() for i in (0, 2))
    convolutions = [name for name, tensor in plain.items() if tensor.dim() == 4]
    assert convolutions and not any(torch.equal(plain[name], deskewed[name]) for name in convolutions)

    (folds,) = (np.load(path) for path in tmp_path.glob("data/prepared/splits/*/folds.npy"))
    views = {name: apply_view(torch.from_numpy(IMAGES), name).numpy() for name in ("plain", "deskewed")}
    out_of_fold, test = np.zeros((400, 10)), np.zeros((100, 10))
    for loaded in networks:
        images, held_out = views[loaded.metadata["model"]["view"]], folds == loaded.metadata["fold"]
        out_of_fold[held_out] += predict(loaded.network, images[:400][held_out]) / 2
        test += predict(loaded.network, images[400:]) / 4
    evaluation = tmp_path / "data/runs/quick/evaluate"
    assert np.load(evaluation / "probabilities.npy") == pytest.approx(out_of_fold, abs=1e-4)
    assert np.load(tmp_path / "submissions/quick/probabilities.npy") == pytest.approx(test, abs=1e-4)
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics["n_correct"] == (out_of_fold.argmax(1) == LABELS[:400]).sum()
