"""`--stage inspect`: its numbers against plain computations, its pictures and page against what must be in them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

import run_pipeline
from pipeline import inspection, metrics, recipe, training
from pipeline.inference import as_input
from pipeline.models import load_weights, make
from pipeline.pictures import captions
from pipeline.settings import Model
from pipeline.stages import STAGES, cleaning
from tests.conftest import SHORT, digits_28

IMAGES, LABELS = digits_28(60)
WORDS = (*SHORT, "--device", "cpu")
FEW = ("--set", "inspect.rows=60", "--set", "inspect.image=17")
RECORD = ("--set", "train.record=true")


def network_of(name):
    training.seed_everything(1)
    return make(recipe.load(name).model, torch.from_numpy(IMAGES)).eval()


@pytest.mark.parametrize("name", recipe.names())
def test_the_steps_are_the_network(name):
    made = network_of(name)
    whole = made(as_input(torch.from_numpy(IMAGES[:1])))[0].detach().numpy()
    layers = inspection.outputs(made, IMAGES[0])
    assert np.allclose(layers[-1][1], whole, atol=1e-5)
    last = inspection.steps(made)[-1]
    given = torch.from_numpy(inspection.features(made, IMAGES[:3]))
    assert np.allclose((given @ last.weight.T + last.bias)[0].detach(), whole, atol=1e-4)
    kinds = [type(step) for step in inspection.steps(made)]
    shown = [step for step in inspection.steps(made) if inspection.describe(step)]
    assert len(shown) == len(layers) and torch.nn.Sequential not in kinds


def test_weights_are_those_of_the_network():
    made = network_of("ladder/lenet")
    found = inspection.layer_weights(made)
    parameters = dict(made.named_parameters())
    assert list(found) == [name for name, weight in parameters.items() if weight.ndim > 1]
    for number, (name, (words, values)) in enumerate(found.items(), 1):
        assert words.startswith(f"{number}: ") and np.array_equal(values, parameters[name].detach().numpy().ravel())
    assert found["layers.0.weight"][0] == "1: conv 5x5, 6"
    assert inspection.first_weights(made).shape == (6, 5, 5) and inspection.last_weights(made).shape == (10, 84)
    assert inspection.first_weights(network_of("keras/linear")).shape == (10, 28, 28)
    pooled = make(Model(name="layers", layers=("avg_pool 2", "dense 32", "relu")))
    assert inspection.first_weights(pooled).shape == (32, 14, 14)


def test_wide_features_are_reduced_to_their_principal_components():
    values = np.random.default_rng(0).normal(size=(80, 1200)) * np.r_[9, 7, 5, np.full(1197, 0.05)]
    left, sizes, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    for wide in (values, values[:, :900]):
        found = inspection.reduce(wide)
        assert found.shape == (80, 50)
        assert np.allclose(np.abs(found[:, :3]), np.abs(left[:, :3] * sizes[:3]), atol=0.05)


def test_input_gradients_are_differences():
    made = network_of("ladder/lenet").double()  # tanh: smooth
    made.layers.double()
    answers = [3, 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "as_input", lambda images: images[:, None].double() / 255)
        found = inspection.input_gradients(made, IMAGES[:2], answers)
    for image in (0, 1):
        for row, column in ((5, 9), (14, 14), (20, 11)):
            pixels = torch.from_numpy(IMAGES[image]).double()[None, None].repeat(2, 1, 1, 1) / 255
            pixels[0, 0, row, column] += 1e-4
            pixels[1, 0, row, column] -= 1e-4
            above, below = made(pixels)[:, answers[image]].tolist()
            assert found[image, row, column] == pytest.approx((above - below) / 2e-4, rel=1e-4, abs=1e-9)


def test_occlusion_is_a_plain_loop():
    made = network_of("ladder/lenet")
    found = inspection.occlusion(made, IMAGES[4], 6)
    before = made(as_input(torch.from_numpy(IMAGES[4:5]))).softmax(1)[0, 6].item()
    for row, column in ((0, 0), (13, 14), (27, 3)):
        painted = IMAGES[4].copy()
        for y in range(28):
            for x in range(28):
                if abs(y - row) <= 2 and abs(x - column) <= 2:
                    painted[y, x] = 0
        after = made(as_input(torch.from_numpy(painted[None]))).softmax(1)[0, 6].item()
        assert found[row, column] == pytest.approx(before - after, abs=1e-6)
    assert found.shape == (28, 28)


def test_silhouette_is_a_plain_loop():
    places, labels = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    scores = []
    for one in range(30):
        away = [
            np.mean([np.linalg.norm(places[one] - places[j]) for j in range(30) if labels[j] == digit and j != one])
            for digit in range(3)
        ]
        own, other = away[labels[one]], min(away[digit] for digit in range(3) if digit != labels[one])
        scores.append((other - own) / max(own, other))
    assert inspection.silhouette(places, labels) == pytest.approx(np.mean(scores))
    assert inspection.silhouette(places, np.zeros(30, np.uint8)) is None


def test_quantiles_of_a_histogram_are_within_a_bin():
    values = np.random.default_rng(0).normal(size=5000)
    limit = np.abs(values).max()
    counts, _ = np.histogram(values, 100, (-limit, limit))
    parts = (0.01, 0.25, 0.5, 0.75, 0.99)
    found = inspection.quantiles(counts.tolist(), limit, parts)
    assert np.abs(found - np.quantile(values, parts)).max() < 2 * limit / 100


def test_calibration_counted_by_hand():
    # Answers 0, 0, 0, 1 with confidence 0.9, 0.9, 0.65 and 0.35: right, wrong, right, wrong.
    chances = np.zeros((4, 10))
    chances[0, 0] = chances[1, 0] = 0.9
    chances[2, 0], chances[3, 1] = 0.65, 0.35
    found = metrics.calibration(chances, np.array([0, 5, 0, 5]), bins=5)
    assert found["rows"].tolist() == [0, 1, 0, 1, 2]
    assert found["accuracy"][[1, 3, 4]].tolist() == [0, 1, 0.5]
    assert found["confidence"][[1, 3, 4]] == pytest.approx([0.35, 0.65, 0.9])
    assert found["ece"] == pytest.approx((0.35 + 0.35 + 2 * 0.4) / 4)
    assert tuple(found["interval_95"][4]) == metrics.wilson(1, 2)


@pytest.fixture(scope="module")
def inspected(_finished, tmp_path_factory):
    """The finished run, recorded, explored and inspected; tests leave it as it is."""
    workspace = shutil.copytree(_finished, tmp_path_factory.mktemp("inspected") / "here")
    for stage in ("train", "evaluate", "explore", "inspect"):
        words = ["--stage", stage, *WORDS, *FEW, "--set", "explore.rows=60", "--workspace", str(workspace)]
        assert run_pipeline.main([*words, *(RECORD if stage == "train" else ())]) == 0
    return workspace


def held_rows(workspace):
    (split,) = (workspace / "data/prepared/splits").iterdir()
    return np.load(split / "validation_rows.npy")


def test_the_stage_leaves_pictures_numbers_and_a_report(inspected):
    folder = inspected / "data/runs/quick/inspect"
    stage = STAGES["inspect"]
    for name in (*stage.outputs, *stage.may_leave):
        assert (folder / name).exists(), name
        if name.endswith(".png"):
            height, width, _ = imread(folder / name).shape
            assert 180 < height < 2000 and 600 < width < 1500, name
    numbers = json.loads((folder / "inspect.json").read_text())
    rows, arrays = held_rows(inspected), inspected / "data/prepared/arrays"
    images, labels = (np.load(arrays / f"train_{name}.npy") for name in ("images", "labels"))
    (network, about), *_ = load_weights(inspected / "data/runs/quick/train/weights.safetensors", "cpu")
    with torch.autocast("cpu", torch.bfloat16, enabled=about["precision"] == "bf16"), torch.no_grad():
        answers = network.eval()(as_input(torch.from_numpy(images[rows]))).argmax(1).numpy()
    assert numbers["accuracy"] == np.mean(answers == labels[rows]) and numbers["rows"] == len(rows)
    assert numbers["image"]["row"] == 17 and numbers["image"]["label"] == labels[16]
    chances = network(as_input(torch.from_numpy(images[16:17]))).softmax(1)[0].detach().numpy()
    assert np.allclose(numbers["image"]["probabilities"], chances, atol=1e-5)
    for row in numbers["cases"]["wrong"]:
        at = rows.tolist().index(row - 1)
        assert answers[at] != labels[row - 1]
    tsne = numbers["tsne"]
    assert tsne["rows"] == 60 and tsne["raw pixels"]["neighbour_accuracy"] > 0.6  # of 60 digits; by chance 0.1
    weights = numbers["weights"]["1: conv 5x5, 32"]
    assert weights["count"] == 800
    assert weights["deviation"] == pytest.approx(network.layers[0].weight.detach().std(unbiased=False).item(), rel=1e-5)
    with Image.open(folder / "weights_moving.gif") as animation:
        assert animation.n_frames == 3 and numbers["recorded_epochs"] == [0, 1, 2]


def test_untrained_is_what_the_training_began_with(inspected):
    """The record's first row was taken in the training; the stage makes the network anew from its seed."""
    record = json.loads((inspected / "data/runs/quick/train/record.json").read_text())["rows"][0]["layers"]
    numbers = json.loads((inspected / "data/runs/quick/inspect/inspect.json").read_text())
    for found, (words, about) in zip(record.values(), numbers["weights"].items(), strict=True):
        width = 2 * found["limit"] / len(found["counts"])
        middles = (np.arange(len(found["counts"])) + 0.5) * width - found["limit"]
        deviation = np.sqrt(np.average(middles**2, weights=found["counts"]))
        assert about["deviation_untrained"] == pytest.approx(deviation, rel=0.01), words


def test_the_report_holds_every_picture_and_nothing_from_outside(inspected):
    html = (inspected / "data/runs/quick/inspect/report.html").read_text()
    every = captions.DATA | captions.TRAINING | captions.ANSWERS | captions.CALIBRATION
    count = len(every) + len(captions.NETWORK) + len(captions.OVER_TRAINING)
    assert html.count("<img") == count
    assert html.count("data:image/gif;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html and "url(" not in html
    assert "prefers-color-scheme" in html or "color-scheme: light dark" in html
    assert "@media print" in html and "train.epochs" in html


def again(command, workspace, *more):
    return command("--stage", "inspect", *WORDS, *FEW, *more, "--workspace", workspace)


def test_without_a_record_and_the_data_it_says_so(command, finished):
    run = again(command, finished)
    assert run.code == 0 and "was not recorded" in run.out
    assert f"--workspace {finished}" in run.out and "--recipe quick" in run.out  # how to record it
    folder = finished / "data/runs/quick/inspect"
    assert not (folder / "weights_moving.gif").exists() and not (folder / "gradients.png").exists()
    html = (folder / "report.html").read_text()
    assert "--stage explore draws" in html and "train.record=true" in html
    assert "inspect   fresh" in command("--status", *WORDS, *FEW, "--workspace", finished).out
    assert command("--stage", "explore", *WORDS, "--set", "explore.rows=50", "--workspace", finished).code == 0
    status = command("--status", *WORDS, *FEW, "--set", "explore.rows=50", "--workspace", finished).out
    assert re.search(r"inspect +stale +explore/", status)
    assert folder.resolve() not in cleaning.unused(finished, [])


def test_rows_and_networks_that_are_not_there(command, finished):
    for setting, words in (("inspect.image=401", "400 rows"), ("inspect.member=2", "has 1 network")):
        run = command("--stage", "inspect", *WORDS, "--set", setting, "--workspace", finished)
        assert run.code == 2 and words in run.err and setting.partition("=")[0] in run.err


def test_of_an_ensemble_one_network_on_the_rows_it_was_not_trained_on(command, finished):
    folds = ("--set", "split.folds=2", "--set", "train.epochs=1")
    assert command("--stage", "all", *WORDS, *folds, "--workspace", finished).code == 0
    run = again(command, finished, *folds, "--set", "inspect.member=2")
    assert run.code == 0 and "Network 2 of 2" in run.out and "without fold 1" in run.out
    assert "not of an ensemble" in run.out and "alone and without shifted copies" in run.out
    numbers = json.loads((finished / "data/runs/quick/inspect/inspect.json").read_text())
    (split,) = (path.parent for path in (finished / "data/prepared/splits").glob("*/folds.npy"))
    of_fold = np.load(split / "validation_rows.npy")[np.load(split / "folds.npy") == 1]
    assert numbers["rows"] == len(of_fold)
    assert {row - 1 for cases in numbers["cases"].values() for row in cases} <= set(of_fold.tolist())


def test_where_no_row_was_held_out_it_looks_at_training_rows_and_says_so(command, finished):
    words = ("--set", "train.fit_all=true", "--set", "train.epochs=1")
    assert command("--stage", "all", *WORDS, *words, "--workspace", finished).code == 0
    run = again(command, finished, *words)
    assert run.code == 0 and "400 training rows (none was held out)" in run.out
    folder = finished / "data/runs/quick/inspect"
    assert not (folder / "reliability.png").exists()
    assert "nothing is left to evaluate on" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_the_same_run_gives_the_same_files(command, inspected):
    folder = inspected / "data/runs/quick/inspect"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
    assert again(command, inspected, "--set", "explore.rows=60").code == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
