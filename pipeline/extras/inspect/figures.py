"""Pictures of a trained network: features, weights, feature maps, saliency and calibration."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.extras.inspect.internals import LayerHistory, Saliency
from pipeline.metrics.classification import Calibration
from pipeline.reports import style
from pipeline.shapes import Float, Float32, Float64, UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_FILTERS = 128
MAX_FRAMES = 40  # of an animation
MAX_MAPS = 64  # feature maps of a layer
MAPS_PER_ROW = 32  # feature maps; half as many of maps that are larger than LARGE_MAP, with twice the size
LARGE_MAP = 32  # pixels; larger maps are reduced to at most twice this size by averaging pixels
VALUES_PER_ROW = 128  # outputs of a dense layer
MAP_SIZE = 0.29  # inches
MAX_DENSE_HEIGHT = 1.6  # inches
MIN_OCCLUSION = 0.05  # the smallest scale of occlusion, so that a fall by a percent is pale


@style.default_parameters()
def features(embeddings: Sequence[tuple[str, Float[np.ndarray, "n 2"]]], labels: UInt8[np.ndarray, " n"]) -> bytes:
    """Scatter plots of (title, points) side by side, in the colours of the digits."""
    figure = style.new_figure(13, 4.7)
    for axes, (title, points) in zip(figure.subplots(1, len(embeddings)), embeddings, strict=True):
        style.scatter_points(axes, points, labels)
        centre, half = (points.max(0) + points.min(0)) / 2, 1.05 * np.ptp(points, 0).max() / 2
        axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), box_aspect=1)
        axes.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2")
        style.format_axes(axes, title_size=10)
    style.add_digit_legend(figure)
    return style.to_png(figure)


@style.default_parameters()
def filters(weights: Float32[np.ndarray, "outputs height width ..."]) -> bytes:
    """The weights of each output as an image, with one scale: red above zero and blue below.

    The weights of red, green and blue channels, on the last axis, are drawn in these colours, with gray for zero.
    """
    title = "The first layer's weights as images"
    if len(weights) > MAX_FILTERS:
        title += f" (the first {MAX_FILTERS} of {len(weights):,})"
        weights = weights[:MAX_FILTERS]
    columns = min(16, len(weights))
    rows = -(-len(weights) // columns)
    size = min(0.62, 9.6 / columns) if len(weights) > 10 else 1.0
    width = max(7, 0.2 + size * columns)
    margin = (width - size * columns) / 2
    figure, axes = style.image_grid(title, (width, 0.6 + size * rows), columns, rows, margin, margin)
    limit = float(np.abs(weights).max())
    if weights.ndim == 4:
        weights = 0.5 + weights / (2 * limit)
    for number, values in enumerate(weights):
        row, column = divmod(number, columns)
        style.draw_image(axes, values, (column + 0.05, row + 0.05), (0.9, 0.9), (-limit, limit), style.SIGNED)
    return style.to_png(figure)


@style.default_parameters()
def last_layer(weights: Float32[np.ndarray, "10 d"]) -> bytes:
    """The weights of the last layer with a row for each digit; features are sorted by the digit they support most."""
    order = np.lexsort((-weights.max(0), weights.argmax(0)))
    limit = np.quantile(np.abs(weights), 0.995)
    figure = style.new_figure(11, 3.4)
    axes = figure.subplots()
    image = axes.imshow(
        weights[:, order], style.SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    axes.set(xlabel=f"{weights.shape[1]:,} features, sorted by the digit that they support most", ylabel="digit")
    axes.set(yticks=range(10), title="The last layer's weights")
    figure.colorbar(image, ax=axes, label="weight", extend="both")
    style.format_axes(axes, grid=False)
    return style.to_png(figure)


@style.default_parameters()
def feature_maps(
    image: UInt8[np.ndarray, "28 28"],
    layers: Sequence[tuple[str, Float32[np.ndarray, "..."]]],
    probabilities: Float64[np.ndarray, " 10"],
    title: str,
) -> bytes:
    """The outputs of each layer for an image, and the probabilities.

    layers: descriptions and outputs, (channels, height, width) or (values,).

    Each layer has its own scale: red above zero and blue below, or black for the maximum if no value is negative.
    """
    gap, left, bottom = 0.09, 1.5, 1.6  # inches, as all sizes here
    sheets = [_tile(values) for _, values in layers]
    height = 3 * MAP_SIZE + gap + sum(sheet_height + gap for _, _, sheet_height in sheets)
    figure, axes = style.image_grid(title, (11, 0.55 + height + bottom), 9.4, height + 0.05, left, bottom=bottom)
    style.draw_image(axes, image, (0, 0), (3 * MAP_SIZE, 3 * MAP_SIZE))
    style.label_row(axes, 1.5 * MAP_SIZE, "the image", fontsize=8)
    top = 3 * MAP_SIZE + gap
    for (description, values), (sheet, sheet_width, sheet_height) in zip(layers, sheets, strict=True):
        limit = max(float(np.abs(values).max()), 1e-12)
        low, colour_map = (-limit, style.SIGNED) if values.min() < 0 else (0, style.INKED)
        extent = (0, sheet_width, top + sheet_height, top)
        axes.imshow(sheet, colour_map, vmin=low, vmax=limit, interpolation="nearest", extent=extent, aspect="auto")
        shown = f"{MAX_MAPS} of " if len(values) > MAX_MAPS else ""
        size = "" if values.ndim == 1 else f"\n{shown}{len(values)}, {values.shape[1]}x{values.shape[2]}"
        style.label_row(axes, top + sheet_height / 2, description + size, fontsize=8)
        top += sheet_height + gap
    total = figure.get_figheight()
    bars = figure.add_axes((left / 11, 0.45 / total, 9.4 / 11, (bottom - 0.75) / total))
    drawn = bars.bar(range(10), 100 * probabilities, color=style.DIGITS)
    bars.bar_label(drawn, [f"{probability:.2%}" for probability in probabilities], fontsize=8, padding=2)
    bars.set(xlabel="digit", ylabel="probability (%)", xticks=range(10), ylim=(0, 118), yticks=(0, 50, 100))
    style.format_axes(bars, grid=False)
    return style.to_png(figure)


def _tile(values: Float32[np.ndarray, "..."]) -> tuple[Float32[np.ndarray, "height width"], float, float]:
    """The outputs of a layer side by side in one image, and its width and height in inches; NaN between the maps.

    One image, since drawing each map by itself would take long.
    """
    dense = values.ndim == 1
    maps = values[:, None, None] if dense else _shrink(values[:MAX_MAPS])
    scale = 2 if maps.shape[2] > LARGE_MAP else 1
    columns = min(VALUES_PER_ROW if dense else MAPS_PER_ROW // scale, len(maps))
    rows = -(-len(maps) // columns)
    gap = 0 if dense else max(1, round(maps.shape[2] / 12))
    padding = ((0, rows * columns - len(maps)), (0, gap), (0, gap))
    padded = np.pad(maps, padding, constant_values=np.nan)
    sheet = padded.reshape(rows, columns, *padded.shape[1:]).swapaxes(1, 2).reshape(rows * padded.shape[1], -1)
    if dense:
        return sheet, max(9.3 * columns / VALUES_PER_ROW, 2), min(0.2 * rows, MAX_DENSE_HEIGHT)
    return sheet, scale * MAP_SIZE * columns, scale * MAP_SIZE * rows


def _shrink(maps: Float32[np.ndarray, "n height width"]) -> Float32[np.ndarray, "n rows columns"]:
    """Maps of at most twice LARGE_MAP pixels: means of squares of pixels; what is left at the edges is cut off."""
    factor = -(-maps.shape[2] // (2 * LARGE_MAP))
    side = maps.shape[2] // factor
    blocks = maps[:, : side * factor, : side * factor].reshape(len(maps), side, factor, side, factor)
    means: Float32[np.ndarray, "n rows columns"] = blocks.mean((2, 4))
    return means


@style.default_parameters()
def weights(layers: Sequence[tuple[str, Float32[np.ndarray, " _"], Float32[np.ndarray, " _"]]]) -> bytes:
    """Histograms of each layer's weights: (description, untrained, trained)."""
    titles = [f"{description}: {len(trained):,} weights" for description, _, trained in layers]
    figure, panels = _layer_panels("Weights of each layer, untrained and trained", titles, "weight", "weights (%)")
    for axes, (_, untrained, trained) in zip(panels, layers, strict=True):
        limit = max(np.abs(untrained).max(), np.abs(trained).max())
        edges = np.linspace(-limit, limit, 81)
        for values, colour, label in ((untrained, "#999999", "untrained"), (trained, style.BLUE, "trained")):
            heights = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(heights, edges, color=colour, label=label, fill=label == "untrained", alpha=0.9)
    style.add_legend_below(figure, panels)
    return style.to_png(figure)


@style.default_parameters()
def weights_over_training(epochs: Sequence[int], layers: Sequence[LayerHistory], kept_epoch: int) -> bytes:
    """Bands of each layer's weights against epochs: the median, half of the weights, and 98% of them."""
    titles = [layer.description for layer in layers]
    title = "Distribution of each layer's weights during training"
    figure, panels = _layer_panels(title, titles, "epoch (0: untrained)", "weight")
    for axes, layer in zip(panels, layers, strict=True):
        lowest, low, median, high, highest = layer.quantiles.T
        axes.fill_between(epochs, lowest, highest, color=style.BLUE, alpha=0.2, linewidth=0, label="98% of the weights")
        axes.fill_between(epochs, low, high, color=style.BLUE, alpha=0.4, linewidth=0, label="50% of the weights")
        axes.plot(epochs, median, color=style.INK, linewidth=1, label="median")
        axes.axvline(kept_epoch, color=style.INK, linewidth=0.8, linestyle=":", label="kept epoch")
        style.use_integer_ticks(axes.xaxis)
    style.add_legend_below(figure, panels)
    return style.to_png(figure)


@style.default_parameters()
def weights_animated(epochs: Sequence[int], layers: Sequence[LayerHistory]) -> bytes:
    """A GIF of the density of each layer's weights, with a frame for each epoch (at most MAX_FRAMES)."""
    titles = [layer.description for layer in layers]
    figure, panels = _layer_panels("Weights of each layer, epoch 0", titles, "weight", "density (own scale)")
    drawn = []
    for axes, layer in zip(panels, layers, strict=True):
        bins, limit = layer.counts.shape[1], layer.limits.max()
        density = layer.counts / layer.counts.sum(1, keepdims=True) * (bins / (2 * layer.limits[:, None]))
        drawn.append((axes.stairs(density[0], np.linspace(-1, 1, bins + 1), color=style.BLUE, fill=True), density))
        axes.set(xlim=(-limit, limit), ylim=(0, 1.05 * density.max()), yticks=[])
    frames = []
    for at in np.unique(np.linspace(0, len(epochs) - 1, min(MAX_FRAMES, len(epochs))).round().astype(int)):
        for (stairs, density), layer in zip(drawn, layers, strict=True):
            edges = np.linspace(-layer.limits[at], layer.limits[at], density.shape[1] + 1)
            stairs.set_data(density[at], edges)
        figure.suptitle(f"Weights of each layer, epoch {epochs[at]} of {epochs[-1]}")
        frame = Image.fromarray(style.to_pixels(figure))
        figure.set_layout_engine("none")  # computed once: it would take half of the time
        frames.append(frame.quantize(64, Image.Quantize.MEDIANCUT))
    return style.to_gif(frames, 200, 3000)


@style.default_parameters()
def gradients(epochs: Sequence[int], layers: Sequence[LayerHistory]) -> bytes:
    """Mean and maximum absolute gradient of each layer's weights against epochs."""
    figure = style.new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    marker = "." if len(epochs) == 1 else None
    for number, layer in enumerate(layers):
        for axes, values in ((left, layer.gradient_means), (right, layer.gradient_maxima)):
            axes.plot(epochs, values, label=layer.description, linewidth=1.3, marker=marker, **style.line_style(number))
    for axes, statistic in ((left, "mean"), (right, "maximum")):
        axes.set(title=f"The {statistic} gradient of each layer's weights", xlabel="epoch", yscale="log")
        axes.set(ylabel=f"{statistic} absolute gradient (log scale)")
        style.use_integer_ticks(axes.xaxis)
        style.format_axes(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return style.to_png(figure)


@style.default_parameters()
def saliency(groups: Mapping[str, Sequence[tuple[int, Saliency]]]) -> bytes:
    """Images with their input gradients and occlusions, by the name of a group: (row of train.csv, saliency)."""
    columns = max(1, *(len(group) for group in groups.values()))
    title = "Saliency (red: evidence for the predicted digit, blue: evidence against it)"
    size = (max(8.0, 1.5 + 1.15 * columns), 0.6 + 3.9 * len(groups))
    figure, axes = style.image_grid(title, size, columns, 3.3 * len(groups), left=1.4)
    for number, (name, group) in enumerate(groups.items()):
        top = 3.3 * number
        for row, label in enumerate((f"{name}:\nthe image", "input gradient", "occlusion")):
            style.label_row(axes, top + 0.75 + row, label, x=-0.08)
        for column, (row, case) in enumerate(group):
            text = f"label {case.label} (row {row})\npredicted {case.prediction}: {case.probability:.1%}"
            style.label_image(axes, column + 0.5, top + 0.23, text)
            style.draw_image(axes, case.image, (column + 0.04, top + 0.26), (0.92, 0.92))
            gradient_limit = max(float(np.abs(case.input_gradient).max()), 1e-12)
            occlusion_limit = max(float(np.abs(case.occlusion).max()), MIN_OCCLUSION)
            for line, values, limit, corner_text in (
                (1, case.input_gradient, gradient_limit, f"{gradient_limit:.2g}"),
                (2, case.occlusion, occlusion_limit, f"{max(0, case.occlusion.max()):.0%}"),
            ):
                corner = (column + 0.04, top + 0.26 + line)
                style.draw_image(axes, values, corner, (0.92, 0.92), (-limit, limit), style.SIGNED)
                axes.text(column + 0.07, corner[1] + 0.12, corner_text, fontsize=6, color="#666666")
        if not group:
            axes.text(0.1, top + 1.75, "none", va="center", fontsize=11, color=style.INK)
    return style.to_png(figure)


@style.default_parameters()
def reliability(calibration: Calibration, title: str) -> bytes:
    """Accuracy against confidence, and the number of rows with each confidence."""
    figure = style.new_figure(6.4, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    used = calibration.rows > 0
    above.plot([0, 100], [0, 100], color="#999999", linestyle=":", label="perfect calibration")
    confidence, accuracy = 100 * calibration.confidence[used], 100 * calibration.accuracy[used]
    low, high = 100 * calibration.interval_95[used].T
    bars = np.maximum([accuracy - low, high - accuracy], 0)
    above.errorbar(
        confidence, accuracy, bars, color=style.BLUE, marker="o", linestyle="none", label="accuracy, 95% interval"
    )
    above.set(title=title, ylabel="accuracy (%)", xlim=(0, 101), ylim=(0, 103))
    above.legend(frameon=False, fontsize=9, loc="lower right")
    centres = (calibration.edges[1:] + calibration.edges[:-1])[used] * 50
    below.bar(centres, calibration.rows[used], width=92 / len(used), color=style.ORANGE)
    below.set(xlabel="confidence: the prediction's probability (%)", ylabel="rows (log scale)", yscale="log")
    below.yaxis.set_major_formatter("{x:,.0f}")
    style.format_axes(above, title_size=11)
    style.format_axes(below)
    return style.to_png(figure)


def _layer_panels(title: str, layer_titles: Sequence[str], xlabel: str, ylabel: str) -> "tuple[Figure, list[Axes]]":
    """A figure with small axes for each layer."""
    count = len(layer_titles)
    rows = -(-count // 4)
    columns = max(2, -(-count // rows))
    figure = style.new_figure(2.9 * columns, 0.5 + 2.4 * rows, title)
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes, layer_title in zip(panels, layer_titles, strict=False):
        axes.set(title=layer_title, xlabel=xlabel, ylabel=ylabel)
        style.format_axes(axes, title_size=9)
    return figure, panels[:count]
