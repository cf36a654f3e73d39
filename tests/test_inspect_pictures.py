"""What `inspect` hands to its pictures, against the network itself, and what the pictures draw of it."""

import io
import itertools
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import run_pipeline
from pipeline import exploration, inspection, metrics, training
from pipeline.inference import as_input
from pipeline.models import load_weights, make
from pipeline.pictures import network as pictures
from pipeline.settings import Model
from pipeline.stages import inspect as stage
from pipeline.views import view
from tests.conftest import SHORT, write_tables

DRAWN = ("embeddings", "filters", "last_layer", "feature_maps", "weight_spread", "weights_over_training")
DRAWN += ("weights_animated", "gradients", "looks", "reliability")
# What is easily mixed up: a view, pixels that are measured, and the second of two networks.
SECOND = ("model.view=deskewed", "model.pixels=standardised", "ensemble.seeds=2", "inspect.member=2")
SEEN = (*SHORT, "--device", "cpu", "--set", "train.precision=fp32", "--set", "inspect.rows=60")


@pytest.fixture(scope="module")
def spied(tmp_path_factory, tables):
    """By kind of run ("second", "recorded"): its workspace, and the last arguments of each drawing and of `reduce`."""
    found = {}
    for kind, settings in (("second", SECOND), ("recorded", ("train.record=true",))):
        workspace = tmp_path_factory.mktemp(kind)
        write_tables(workspace / "data" / "raw", tables)
        words = [*SEEN, *(word for one in settings for word in ("--set", one)), "--workspace", str(workspace)]
        assert run_pipeline.main(["--stage", "all", *words]) == 0
        calls = {"reduce": []}
        with pytest.MonkeyPatch.context() as patch:
            for name in DRAWN:
                real = getattr(pictures, name)

                def draw(*given, name=name, real=real, calls=calls):
                    calls[name] = given
                    return real(*given)

                patch.setattr(stage.pictures, name, draw)

            def reduce(values, real=inspection.reduce, calls=calls):
                calls["reduce"].append(values)
                return real(values)

            patch.setattr(inspection, "reduce", reduce)
            assert run_pipeline.main(["--stage", "inspect", *words]) == 0
        numbers = json.loads((workspace / "data/runs/quick/inspect/inspect.json").read_text())
        found[kind] = (workspace, calls, numbers)
    return found


def parts(workspace):
    """Images as the network is shown them, labels, held rows, and the network that is looked at."""
    arrays = workspace / "data/prepared/arrays"
    images, labels = (np.load(arrays / f"train_{name}.npy") for name in ("images", "labels"))
    (split,) = (workspace / "data/prepared/splits").iterdir()
    rows = np.load(split / "validation_rows.npy")
    network, about = load_weights(workspace / "data/runs/quick/train/weights.safetensors", "cpu")[-1]
    shown = view(torch.from_numpy(images), about["model"]["view"])
    return images, shown, labels, rows, network.eval(), about


def before_the_last(network, shown):
    """What a plain forward pass gives to the last layer."""
    taken, last = [], inspection.steps(network)[-1]
    hook = last.register_forward_hook(lambda module, given, out: taken.append(given[0].detach().numpy()))
    answers = network.eval()(as_input(shown))
    hook.remove()
    return taken[0], answers.detach()


def test_three_embeddings_are_of_what_they_say(spied):
    workspace, calls, numbers = spied["second"]
    images, shown, labels, rows, network, about = parts(workspace)
    assert about["seed"] == 1 and about["model"]["view"] == "deskewed"
    training.seed_everything(1)  # as the training of the second network began
    (augmented,) = (workspace / "data/augmented").glob("*/images.npy")
    untrained = make(Model(**about["model"]), torch.from_numpy(np.load(augmented)))
    some = rows[:60]
    expected = (
        images[some].reshape(60, -1) / np.float32(255),
        before_the_last(untrained, shown[some])[0],
        before_the_last(network, shown[some])[0],
    )
    for given, wanted in zip(calls["reduce"], expected, strict=True):
        assert np.allclose(given, wanted, atol=1e-4)
    panels, drawn = calls["embeddings"]
    assert np.array_equal(drawn, labels[some])
    for (words, places), name in zip(panels, ("raw pixels", "untrained network", "trained network"), strict=True):
        found = numbers["tsne"][name]
        assert found["neighbour_accuracy"] == exploration.neighbour_accuracy(places, labels[some])
        assert found["silhouette"] == inspection.silhouette(places, labels[some])
        assert words.startswith(name) and f"{found['neighbour_accuracy']:.1%}" in words
        assert f"silhouette {found['silhouette']:.2f}" in words


def test_cases_are_right_and_wrong_and_looked_at_for_their_answers(spied):
    workspace, calls, numbers = spied["second"]
    _, shown, labels, rows, network, _ = parts(workspace)
    answers = network(as_input(shown)).argmax(1).numpy()
    assert numbers["accuracy"] == np.mean(answers[rows] == labels[rows])
    groups = calls["looks"][0]
    assert len(groups["wrong"]) == min(10, np.sum(answers[rows] != labels[rows])) > 0 and {
        len(case) for group in groups.values() for case in group
    } == {4}
    right = {int(digit) for digit in np.unique(labels[rows][answers[rows] == labels[rows]])}
    assert {int(re.search(r"label (\d)", words)[1]) for _, words, _, _ in groups["right"]} == right
    for name, group in groups.items():
        for (pixels, words, gradient, fall), row in zip(group, numbers["cases"][name], strict=True):
            at = int(re.search(r"row (\d+)", words)[1]) - 1
            assert at == row - 1 and at in rows and np.array_equal(pixels, shown[at].numpy())
            assert f"label {labels[at]}, said {answers[at]}" in words
            assert (labels[at] == answers[at]) == (name == "right")
            wanted = inspection.input_gradients(network, shown[at : at + 1], [answers[at]])[0]
            assert np.allclose(gradient, wanted, rtol=1e-3, atol=1e-5)
            assert np.allclose(fall, inspection.occlusion(network, shown[at], answers[at]), atol=1e-6)


def test_the_chosen_image_goes_through_in_the_networks_view(spied):
    workspace, calls, numbers = spied["second"]
    _, shown, labels, rows, network, _ = parts(workspace)
    pixels, layers, chances, words = calls["feature_maps"]
    assert np.array_equal(pixels, shown[0].numpy()) and f"label {labels[0]}" in words
    assert ("validation rows" if 0 in rows else "training rows") in words
    wanted = network(as_input(shown[:1])).softmax(1)[0].detach().numpy()
    assert np.allclose(chances, wanted, atol=1e-6) and np.allclose(numbers["image"]["probabilities"], wanted, atol=1e-6)
    assert layers[0][0] == "pixels scaled" and len(layers[-1][1]) == 10


def test_weights_before_and_after_and_calibration(spied):
    workspace, calls, numbers = spied["second"]
    _, _, labels, rows, network, about = parts(workspace)
    training.seed_everything(1)
    untrained = make(Model(**about["model"]))
    pairs = [
        (before, after)
        for (name, before), after in zip(untrained.named_parameters(), network.parameters(), strict=True)
        if before.ndim > 1
    ]
    for (words, before, after), (first, last) in zip(calls["weight_spread"][0], pairs, strict=True):
        assert np.array_equal(before, first.detach().numpy().ravel())
        assert np.array_equal(after, last.detach().numpy().ravel())
        assert numbers["weights"][words]["deviation"] == pytest.approx(after.std())
    chances = np.load(workspace / "data/runs/quick/evaluate/probabilities.npy")
    wanted = metrics.calibration(chances, labels[rows])
    assert numbers["calibration_error"] == wanted["ece"]
    assert np.array_equal(calls["reliability"][0]["rows"], wanted["rows"])
    assert np.array_equal(calls["last_layer"][0], inspection.steps(network)[-1].weight.detach().numpy())
    assert "gradients" not in calls


def test_recorded_weights_and_gradients_are_those_of_the_record(spied):
    workspace, calls, _ = spied["recorded"]
    rows = json.loads((workspace / "data/runs/quick/train/record.json").read_text())["rows"]
    names = list(rows[0]["layers"])
    epochs, bands, kept = calls["weights_over_training"]
    assert epochs == [0, 1, 2] and kept == 2
    for name, (_, found) in zip(names, bands, strict=True):
        for row, quantiles in zip(rows, found, strict=True):
            counts, limit = np.array(row["layers"][name]["counts"]), row["layers"][name]["limit"]
            width = 2 * limit / len(counts)
            values = np.repeat(-limit + (np.arange(len(counts)) + 0.5) * width, counts)  # each in its bin's middle
            assert np.abs(quantiles - np.quantile(values, (0.01, 0.25, 0.5, 0.75, 0.99))).max() <= 1.01 * width
    shown, layers = calls["gradients"]
    assert shown == [1, 2]
    for name, (_, means, highest) in zip(names, layers, strict=True):
        assert means == [row["layers"][name]["gradient_mean"] for row in rows[1:]]
        assert highest == [row["layers"][name]["gradient_max"] for row in rows[1:]]
        assert all(mean < most for mean, most in zip(means, highest, strict=True))


@pytest.fixture
def figure(monkeypatch):
    """A drawing function's figure instead of its bytes."""
    monkeypatch.setattr(pictures, "as_png", lambda made: made)
    return pictures


def test_reliability_draws_accuracy_against_confidence(figure):
    chances = np.full((40, 10), 0.02)
    chances[:30, 0], chances[30:, 0] = 0.82, 0.4
    found = metrics.calibration(chances, np.r_[np.zeros(20), np.ones(10), np.zeros(10)].astype(int))
    above, below = figure.reliability(found, "x").axes
    points = next(line for line in above.lines if line.get_marker() == "o")
    assert np.allclose(points.get_xdata(), [40, 82]) and np.allclose(points.get_ydata(), [100, 100 * 2 / 3])
    assert [bar.get_height() for bar in below.patches] == [10, 30]


def test_the_ten_probabilities_stand_in_order(figure):
    chances = np.arange(10) / 45
    made = figure.feature_maps(np.zeros((28, 28)), [("dense 10", np.arange(10.0))], chances, "x")
    assert np.allclose([bar.get_height() for bar in made.axes[-1].patches], 100 * chances)


def test_last_layer_orders_inputs_by_the_digit_they_speak_for(figure):
    weights = np.random.default_rng(0).normal(size=(10, 50))
    drawn = figure.last_layer(weights).axes[0].images[0].get_array()
    digits = drawn.argmax(0)
    assert (np.diff(digits) >= 0).all() and {tuple(column) for column in drawn.T} == {tuple(one) for one in weights.T}


def test_gradient_lines_are_means_and_greatest(figure):
    left, right = figure.gradients([1, 2], [("a", [0.1, 0.2], [1.0, 2.0]), ("b", [0.3, 0.4], [3.0, 4.0])]).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[0.1, 0.2], [0.3, 0.4]]
    assert [list(line.get_ydata()) for line in right.lines] == [[1.0, 2.0], [3.0, 4.0]]
    assert "mean" in left.get_title() and "greatest" in right.get_title()


def test_the_animation_moves_and_keeps_few_frames():
    epochs = list(range(100))
    counts = np.array([np.roll(np.arange(20), epoch) for epoch in epochs])
    made = pictures.weights_animated(epochs, [("layer", counts, np.full(100, 0.8))])
    with Image.open(io.BytesIO(made)) as animation:
        frames = []
        for at in range(animation.n_frames):
            animation.seek(at)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert len(frames) == pictures.FRAMES
    below = slice(60, None)  # under the title, which also changes
    # By more than a frame's own choice of 64 colours.
    assert all(np.abs(one[below] - two[below]).max() > 80 for one, two in itertools.pairwise(frames))


def test_many_filters_are_cut_and_said(figure):
    made = figure.filters(np.random.default_rng(0).normal(size=(300, 5, 5)), "Weights")
    assert "first 128 of 300" in made.get_suptitle() and made.get_figheight() < 8
