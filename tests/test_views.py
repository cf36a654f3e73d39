"""Views: against scipy, one image at a time; and networks that are trained on one and shown it afterwards."""

import json

import numpy as np
import pytest
import scipy.ndimage
import torch

from pipeline import recipe
from pipeline.models import load_weights
from pipeline.settings import VIEWS as NAMES
from pipeline.stages import members
from pipeline.views import FACTORS, STEEPEST, VIEWS, view
from tests.conftest import SHORT, digits_28
from tests.test_ensemble import of_one

IMAGES, LABELS = digits_28(500)


def moments(image):
    """Centre (down, right) and the second moments of the ink, by numpy's own averages."""
    rows, columns = np.mgrid[:28, :28]
    ink = image.astype(float)
    down, right = np.average(rows, weights=ink), np.average(columns, weights=ink)
    y, x = rows - down, columns - right
    return down, right, *(np.average(product, weights=ink) for product in (x * x, x * y, y * y))


def plain_view(image, deskew, spread):
    down, right, xx, xy, yy = moments(image)
    slant = np.clip(xy / yy, -STEEPEST, STEEPEST) if deskew else 0
    factor = np.clip(spread / np.sqrt(xx - 2 * slant * xy + slant**2 * yy), *FACTORS) if spread else 1
    matrix = np.array([[1, 0], [slant, 1 / factor]])
    offset = np.array([down, right]) - matrix @ [13.5, 13.5]
    made = scipy.ndimage.affine_transform(image.astype(float), matrix, offset, order=1, mode="grid-constant")
    return np.clip(made, 0, 255)


def test_the_recipe_knows_all_views():
    assert tuple(VIEWS) == NAMES


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "plain"])
def test_against_scipy(name):
    made = view(torch.from_numpy(IMAGES[:60]), name).numpy()
    wanted = np.array([plain_view(image, *VIEWS[name]) for image in IMAGES[:60]])
    assert made.dtype == np.uint8 and np.abs(made - wanted).max() < 0.6


def test_slant_and_width_are_gone():
    for image in view(torch.from_numpy(IMAGES[:60]), "deskewed_even").numpy():
        down, right, xx, xy, yy = moments(image)
        assert abs(down - 13.5) < 0.3 and abs(right - 13.5) < 0.3
        assert abs(xy / yy) < 0.1 and 3.4 < xx**0.5 < 4.6


@pytest.mark.parametrize("name", VIEWS)
def test_an_empty_image_stays_empty_and_rows_do_not_depend_on_each_other(name):
    images = torch.from_numpy(IMAGES[:5]).clone()
    images[2] = 0
    made = view(images, name)
    assert not made[2].any()
    assert all(torch.equal(view(image[None], name)[0], one) for image, one in zip(images, made, strict=True))


def test_an_ensemble_of_views(finished, command):
    more = ("ensemble.views=['plain', 'deskewed']", "split.folds=2", "train.precision=fp32")
    words = [word for one in more for word in ("--set", one)]
    run = command("--stage", "all", *SHORT, *words, "--workspace", finished, "--device", "cpu")
    assert run.code == 0, run.err
    assert [member.name for member in members.plan(recipe.load("quick", more))] == [
        f"small_cnn{view}-seed0-fold{fold}" for view in ("", "-deskewed") for fold in (0, 1)
    ]
    folder = finished / "data/runs/quick"
    networks = load_weights(folder / "train/weights.safetensors", "cpu")
    assert [about["model"]["view"] for _, about in networks].count("deskewed") == 2
    (folds,) = (np.load(path) for path in finished.glob("data/prepared/splits/*/folds.npy"))
    shown = {name: view(torch.from_numpy(IMAGES), name).numpy() for name in ("plain", "deskewed")}
    wanted, test = np.zeros((400, 10)), np.zeros((100, 10))
    for network, about in networks:
        images, held = shown[about["model"]["view"]], folds == about["fold"]
        wanted[held] += of_one(network, images[:400][held]) / 2
        test += of_one(network, images[400:]) / 4
    assert np.load(folder / "evaluate/probabilities.npy") == pytest.approx(wanted, abs=1e-4)
    assert np.load(finished / "submissions/quick/probabilities.npy") == pytest.approx(test, abs=1e-4)
    found = json.loads((folder / "evaluate/metrics.json").read_text())
    assert found["right"] == (wanted.argmax(1) == LABELS[:400]).sum()


def test_one_network_on_a_view_is_not_the_one_on_plain_images(finished, command):
    before = (finished / "data/runs/quick/train/weights.safetensors").read_bytes()
    run = command("--stage", "all", *SHORT, "--set", "model.view=even", "--workspace", finished, "--device", "cpu")
    assert run.code == 0, run.err
    assert (finished / "data/runs/quick/train/weights.safetensors").read_bytes() != before
