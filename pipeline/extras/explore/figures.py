"""Pictures of the data: samples, pixel statistics, principal components, t-SNE, and pairs of similar images."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.reports import style
from pipeline.shapes import Float, Float64, Int64, UInt8


@style.default_parameters()
def counts(rows: Int64[np.ndarray, " 10"]) -> bytes:
    """Bars with the number of rows of each digit."""
    figure = style.new_figure(8, 3.4)
    axes = figure.subplots()
    bars = axes.bar(range(10), rows, color=style.DIGITS)
    axes.bar_label(bars, [f"{count:,}" for count in rows], fontsize=8, padding=2)
    axes.set(title=f"{rows.sum():,} training rows by digit", xlabel="digit", ylabel="rows", xticks=range(10))
    axes.margins(y=0.1)
    style.format_axes(axes, grid=False)
    return style.to_png(figure)


@style.default_parameters()
def means(mean: Float64[np.ndarray, "10 28 28"], std: Float64[np.ndarray, "10 28 28"]) -> bytes:
    """The mean image of each digit above its standard deviation image; NaN for a digit without rows."""
    title = "Mean and standard deviation of each digit's pixels (white: 0, black: the maximum)"
    figure, axes = style.image_grid(title, (11, 3.0), 10, 2, left=1.0)
    for row, (name, statistic) in enumerate((("mean", mean), ("standard\ndeviation", std))):
        style.label_row(axes, row + 0.5, name, fontsize=10)
        for digit in np.flatnonzero(np.isfinite(statistic).all((1, 2))):
            limits = (0, np.nanmax(statistic))
            style.draw_image(axes, statistic[digit], (digit + 0.03, row + 0.03), (0.94, 0.94), limits)
    return style.to_png(figure)


@style.default_parameters()
def gray_levels(pixel_counts: Int64[np.ndarray, "10 256"], ink: Float64[np.ndarray, " 10"]) -> bytes:
    """Histograms of the gray levels of each digit, and the mean gray level of each digit."""
    figure = style.new_figure(11, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    edges = np.arange(0, 257, 8)
    for digit in np.flatnonzero(pixel_counts.sum(1)):
        shares = np.add.reduceat(pixel_counts[digit], edges[:-1]) / pixel_counts[digit].sum()
        left.stairs(100 * shares, edges, color=style.DIGITS[digit], linewidth=1.3)
    left.set(title="Gray levels of all pixels, by digit", xlabel="gray level (0: paper, 255: full ink)", yscale="log")
    left.set(ylabel="pixels (%, log scale)", xlim=(0, 256))
    left.yaxis.set_major_formatter("{x:g}")
    bars = right.bar(range(10), 100 * ink, color=style.DIGITS)
    right.bar_label(bars, [f"{100 * share:.1f}" for share in ink], fontsize=8, padding=2)
    right.set(title="Ink", xlabel="digit", ylabel="mean gray level (% of full ink)", xticks=range(10))
    right.margins(y=0.1)
    style.format_axes(left)
    style.format_axes(right, grid=False)
    style.add_digit_legend(figure)
    return style.to_png(figure)


@style.default_parameters()
def variance(ratios: Float[np.ndarray, " c"]) -> bytes:
    """The fraction of the variance that each principal component explains, and their cumulative sum."""
    figure = style.new_figure(8, 3.6)
    axes = figure.subplots()
    numbers, cumulative = np.arange(1, len(ratios) + 1), 100 * np.cumsum(ratios)
    axes.bar(numbers, 100 * ratios, color="#bbbbbb", label="each component")
    axes.plot(numbers, cumulative, color=style.BLUE, label="cumulative")
    title = f"{len(ratios)} principal components explain {cumulative[-1]:.0f}% of the variance"
    axes.set(title=title, xlabel="component", ylabel="explained variance (%)", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=9)
    style.format_axes(axes)
    return style.to_png(figure)


@style.default_parameters()
def components(directions: Float[np.ndarray, "c 28 28"]) -> bytes:
    """The first 16 principal components as images, blue below zero and red above."""
    title = "The first 16 principal components (red above zero, blue below)"
    figure, axes = style.image_grid(title, (9, 3.1), 8, 2)
    for number, pixels in enumerate(directions[:16]):
        row, column = divmod(number, 8)
        limit = float(np.abs(pixels).max())
        style.draw_image(axes, pixels, (column + 0.03, row + 0.03), (0.94, 0.94), (-limit, limit), style.SIGNED)
        axes.text(column + 0.08, row + 0.2, str(number + 1), fontsize=8, color=style.INK)
    return style.to_png(figure)


@style.default_parameters()
def scatter(points: Float[np.ndarray, "n 2"], labels: UInt8[np.ndarray, " n"], title: str, axis_name: str) -> bytes:
    """Points in the colours of their digits, with a legend."""
    figure = style.new_figure(9, 7.4)
    axes = figure.subplots()
    style.scatter_points(axes, points, labels)
    axes.set(title=title, xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2", aspect="equal")
    style.format_axes(axes)
    style.add_digit_legend(figure)
    return style.to_png(figure)


@style.default_parameters()
def scatter_3d(points: Float[np.ndarray, "n 3"], labels: UInt8[np.ndarray, " n"]) -> bytes:
    """The first three principal components in perspective, in the colours of the digits, with a legend."""
    figure = style.new_figure(9, 7.4)
    axes = figure.add_subplot(projection="3d")
    style.scatter_points(axes, points, labels)
    axes.set(title="The first three principal components")
    axes.set(xlabel="component 1", ylabel="component 2", zlabel="component 3")
    axes.view_init(elev=22, azim=-60)
    axes.set_box_aspect((4, 4, 3), zoom=1.15)
    axes.tick_params(labelsize=8)
    style.add_digit_legend(figure)
    return style.to_png(figure)


@style.default_parameters()
def each_digit(
    points: Float[np.ndarray, "n 2"], labels: UInt8[np.ndarray, " n"], spread: Float64[np.ndarray, " 10"]
) -> bytes:
    """A small plot for each digit: its points over all others in gray, and their spread."""
    figure = style.new_figure(11, 5.2, "t-SNE of each digit")
    for digit, axes in enumerate(figure.subplots(2, 5, sharex=True, sharey=True).ravel()):
        of_digit = labels == digit
        for selected, colour in ((~of_digit, "#dddddd"), (of_digit, style.DIGITS[digit])):
            axes.scatter(*points[selected].T, s=style.POINT_SIZE / 2, color=colour, linewidths=0, rasterized=True)
        axes.set(title=f"{digit}: {of_digit.sum():,} rows, spread {spread[digit]:.0f}", aspect="equal")
        axes.set(xticks=[], yticks=[])
        axes.title.set(fontsize=9, color=style.INK)
        axes.spines[:].set(color=style.GRID)
    return style.to_png(figure)


@style.default_parameters()
def along_axes(points: Float[np.ndarray, "n 2"], labels: UInt8[np.ndarray, " n"]) -> bytes:
    """The distribution of each digit's points along each axis."""
    figure = style.new_figure(11, 3.8, "Rows of each digit along the axes of t-SNE")
    for number, axes in enumerate(figure.subplots(1, 2)):
        edges = np.linspace(points[:, number].min(), points[:, number].max(), 80)
        for digit in np.unique(labels):
            heights, _ = np.histogram(points[labels == digit, number], edges)
            axes.stairs(heights, edges, color=style.DIGITS[digit], linewidth=1.3)
        axes.set(xlabel=f"t-SNE {number + 1}", ylabel="rows")
        style.format_axes(axes)
    style.add_digit_legend(figure)
    return style.to_png(figure)


LabelledImage = tuple[UInt8[np.ndarray, "28 28"], str]  # an image and the text above it
ImagePair = tuple[LabelledImage, LabelledImage]


@style.default_parameters()
def pairs(groups: Mapping[str, Sequence[ImagePair]], title: str) -> bytes:
    """Pairs of images, with a row for each named group."""
    columns = max([1, *(len(group) for group in groups.values())])
    figure, axes = style.image_grid(title, (11, 0.7 + 1.15 * len(groups)), 2 * columns, len(groups), left=1.1)
    for row, (name, group) in enumerate(groups.items()):
        style.label_row(axes, row + 0.6, name, x=-0.15)
        for number, pair in enumerate(group):
            for side, (pixels, label) in enumerate(pair):
                left = 2 * number + (0.07, 1.01)[side]
                style.label_image(axes, left + 0.45, row + 0.2, label)
                style.draw_image(axes, pixels, (left, row + 0.22), (0.92, 0.76))
    if not any(groups.values()):
        figure.text(0.5, 0.4, "none", ha="center", fontsize=11, color=style.INK)
    return style.to_png(figure)
