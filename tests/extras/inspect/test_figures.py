"""network_figures: what the pictures draw of their numbers."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from pipeline.extras.inspect import figures as network_figures
from pipeline.extras.inspect.internals import LayerHistory, Saliency
from pipeline.metrics.classification import calibration
from pipeline.reports import style

DRAWS = True


@pytest.fixture
def draw(monkeypatch):
    """Call a function of the module; returns its figure instead of a PNG file."""
    figures = []
    monkeypatch.setattr(style, "to_png", lambda figure: figures.append(figure) or b"")

    def call(name, *arguments):
        getattr(network_figures, name)(*arguments)
        return figures[-1]

    return call


def make_history(description, means=(), maxima=(), counts=None):
    counts = np.ones((1, 20), np.int64) if counts is None else counts
    quantiles = np.tile([-0.2, -0.1, 0.0, 0.1, 0.2], (len(counts), 1))
    return LayerHistory(description, counts, np.full(len(counts), 0.8), quantiles, list(means), list(maxima))


def test_reliability_draws_accuracy_against_confidence(draw):
    probabilities = np.full((40, 10), 0.02)
    probabilities[:30, 0], probabilities[30:, 0] = 0.82, 0.4
    calibrated = calibration(probabilities, np.r_[np.zeros(20), np.ones(10), np.zeros(10)].astype(int))
    above, below = draw("reliability", calibrated, "title").axes
    points = next(line for line in above.lines if line.get_marker() == "o")
    assert np.allclose(points.get_xdata(), [40, 82]) and np.allclose(points.get_ydata(), [100, 100 * 2 / 3])
    assert [bar.get_height() for bar in below.patches] == [10, 30]


def test_probabilities_are_in_the_order_of_the_digits(draw):
    probabilities = np.arange(10) / 45
    layers = [("dense 10", np.arange(10, dtype=np.float32))]
    figure = draw("feature_maps", np.zeros((28, 28), np.uint8), layers, probabilities, "title")
    assert np.allclose([bar.get_height() for bar in figure.axes[-1].patches], 100 * probabilities)


def test_feature_maps_of_a_layer_are_drawn_in_rows_of_32(draw):
    maps = np.arange(40, dtype=np.float32)[:, None, None] * np.ones((1, 12, 12), np.float32)
    axes = draw("feature_maps", np.zeros((28, 28), np.uint8), [("conv", maps)], np.full(10, 0.1), "title").axes[0]
    sheet = np.ma.filled(axes.images[1].get_array(), np.nan)
    assert sheet.shape == (2 * 13, 32 * 13)
    for number in (0, 31, 32, 39):
        row, column = divmod(number, 32)
        assert (sheet[row * 13 : row * 13 + 12, column * 13 : column * 13 + 12] == number).all()
    assert np.isnan(sheet[12]).all() and np.isnan(sheet[13:, 8 * 13 :]).all()  # gaps, and unused places


def test_features_are_sorted_by_the_digit_that_they_support_most(draw):
    weights = np.random.default_rng(0).normal(size=(10, 50)).astype(np.float32)
    drawn = draw("last_layer", weights).axes[0].images[0].get_array()
    assert (np.diff(drawn.argmax(0)) >= 0).all()
    assert {tuple(column) for column in drawn.T} == {tuple(column) for column in weights.T}


def test_gradient_lines_are_means_and_maxima(draw):
    layers = [make_history("a", (0.1, 0.2), (1.0, 2.0)), make_history("b", (0.3, 0.4), (3.0, 4.0))]
    left, right = draw("gradients", [1, 2], layers).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[0.1, 0.2], [0.3, 0.4]]
    assert [list(line.get_ydata()) for line in right.lines] == [[1.0, 2.0], [3.0, 4.0]]
    assert "mean" in left.get_title() and "maximum" in right.get_title()


def test_saliency_is_labelled_with_row_label_and_prediction(draw):
    image, zeros = np.zeros((28, 28), np.uint8), np.zeros((28, 28), np.float32)
    case = Saliency(image, 4, 9, 0.834, zeros, zeros)
    texts = [text.get_text() for text in draw("saliency", {"correct": [], "wrong": [(1330, case)]}).axes[0].texts]
    assert "label 4 (row 1330)\npredicted 9: 83.4%" in texts
    assert "none" in texts and "correct:\nthe image" in texts


def test_many_filters_are_cut(draw):
    figure = draw("filters", np.random.default_rng(0).normal(size=(300, 5, 5)).astype(np.float32))
    assert "first 128 of 300" in figure.get_suptitle() and figure.get_figheight() < 8


def test_the_animation_moves_and_has_few_frames(monkeypatch):
    monkeypatch.setattr(network_figures, "MAX_FRAMES", 10)
    epochs = list(range(30))
    history = make_history("layer", counts=np.array([np.roll(np.arange(20), epoch) for epoch in epochs]))
    with Image.open(io.BytesIO(network_figures.weights_animated(epochs, [history]))) as animation:
        frames = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert len(frames) == 10
    below_title = slice(60, None)
    # A larger difference than that between the 64 colours of two frames.
    assert all(np.abs(a[below_title] - b[below_title]).max() > 80 for a, b in itertools.pairwise(frames))
