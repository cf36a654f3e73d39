"""The pictures of the data: what the digits look like, pixel by pixel, in few dimensions, and beside their like."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.pictures.style import DIGITS, FIRST, GRID, INK, as_png, cells, image, plain, title

DOT = 1.2  # points^2 of a point in a scatter of tens of thousands


def samples(images, labels, columns=20):
    """A grid: a row each digit, its first images from left to right."""
    figure = Figure(figsize=(11, 6.1), facecolor="white")
    axes = cells(figure, columns, 10, left=0.4, right=0.1, top=0.5, bottom=0.1)
    title(figure, "The first training images of each digit")
    for digit in range(10):
        axes.text(-0.2, digit + 0.5, str(digit), ha="right", va="center", fontsize=12, color=INK)
        for column, pixels in enumerate(images[labels == digit][:columns]):
            image(axes, pixels, (column + 0.03, digit + 0.03), (0.94, 0.94))
    return as_png(figure)


def counts(rows):
    """Bars of the rows of each digit, with their numbers."""
    figure = Figure(figsize=(8, 3.4), facecolor="white", layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(range(10), rows, color=DIGITS)
    axes.bar_label(bars, [f"{count:,}" for count in rows], fontsize=8, padding=2)
    axes.set(title=f"{rows.sum():,} training rows by digit", xlabel="digit", ylabel="rows", xticks=range(10))
    axes.margins(y=0.1)
    plain(axes, grid=False)
    return as_png(figure)


def means(mean, deviation):
    """The mean image of each digit above its deviation image; both (10, 28, 28), greys from 0 to 255."""
    figure = Figure(figsize=(11, 3.0), facecolor="white")
    axes = cells(figure, 10, 2, left=1.0, right=0.1, top=0.5, bottom=0.1)
    title(figure, "Mean and standard deviation of each digit's pixels (white 0, black the greatest)")
    for row, (words, arrays) in enumerate((("mean", mean), ("deviation", deviation))):
        axes.text(-0.1, row + 0.5, words, ha="right", va="center", fontsize=10, color=INK)
        for digit, pixels in enumerate(arrays):
            if np.isfinite(pixels).all():
                image(axes, pixels, (digit + 0.03, row + 0.03), (0.94, 0.94), high=np.nanmax(arrays))
    return as_png(figure)


def greys(counts, ink):
    """How often each grey stands in each digit (log scale), and how much ink a digit takes on average."""
    figure = Figure(figsize=(11, 4.2), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    edges = np.arange(0, 257, 8)
    for digit in np.flatnonzero(counts.sum(1)):
        shares = np.add.reduceat(counts[digit], edges[:-1]) / counts[digit].sum()
        left.stairs(100 * shares, edges, color=DIGITS[digit], linewidth=1.3)
    left.set(title="Greys of all pixels, by digit", xlabel="grey (0 is paper, 255 full ink)", yscale="log")
    left.set(ylabel="pixels (%, log scale)", xlim=(0, 256))
    left.yaxis.set_major_formatter("{x:g}")
    bars = right.bar(range(10), 100 * ink, color=DIGITS)
    right.bar_label(bars, [f"{100 * one:.1f}" for one in ink], fontsize=8, padding=2)
    right.set(title="Ink", xlabel="digit", ylabel="mean grey (% of full ink)", xticks=range(10))
    right.margins(y=0.1)
    plain(left)
    plain(right, grid=False)
    legend(figure)
    return as_png(figure)


def variance(ratios):
    """How much of the variance the first principal components explain, one by one and together."""
    figure = Figure(figsize=(8, 3.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    numbers, together = np.arange(1, len(ratios) + 1), 100 * np.cumsum(ratios)
    axes.bar(numbers, 100 * ratios, color="#bbbbbb", label="each")
    axes.plot(numbers, together, color=FIRST, label="together")
    words = f"{len(ratios)} principal components explain {together[-1]:.0f}% of the variance"
    axes.set(title=words, xlabel="component", ylabel="variance explained (%)", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=9)
    plain(axes)
    return as_png(figure)


def components(directions):
    """The first 16 principal components (16, 28, 28) as images, blue below zero and red above."""
    figure = Figure(figsize=(9, 3.1), facecolor="white")
    axes = cells(figure, 8, 2, left=0.1, right=0.1, top=0.5, bottom=0.1)
    title(figure, "The first 16 principal components (red above zero, blue below)")
    for number, pixels in enumerate(directions[:16]):
        row, column = divmod(number, 8)
        limit = np.abs(pixels).max()
        image(axes, pixels, (column + 0.03, row + 0.03), (0.94, 0.94), cmap="RdBu_r", low=-limit, high=limit)
        axes.text(column + 0.08, row + 0.2, str(number + 1), fontsize=8, color=INK)
    return as_png(figure)


def scatter(places, labels, words, units):
    """Points (n, 2) coloured by digit, with a legend; `units` names the axes."""
    figure = Figure(figsize=(9, 7.4), facecolor="white", layout="constrained")
    axes = figure.subplots()
    points(axes, places, labels)
    axes.set(title=words, xlabel=f"{units} 1", ylabel=f"{units} 2", aspect="equal")
    plain(axes)
    legend(figure)
    return as_png(figure)


def scatter_3d(places, labels, words, units):
    """Points (n, 3) coloured by digit, in perspective, with a legend."""
    figure = Figure(figsize=(9, 7.4), facecolor="white", layout="constrained")
    axes = figure.add_subplot(projection="3d")
    points(axes, places, labels)
    axes.set(title=words, xlabel=f"{units} 1", ylabel=f"{units} 2", zlabel=f"{units} 3")
    axes.view_init(elev=22, azim=-60)
    axes.set_box_aspect((4, 4, 3), zoom=1.15)
    axes.tick_params(labelsize=8)
    legend(figure)
    return as_png(figure)


def each_digit(places, labels, spreads, words):
    """One small picture a digit: its points (of (n, 2)) over all others in grey, and their spread."""
    figure = Figure(figsize=(11, 5.2), facecolor="white", layout="constrained")
    for digit, axes in enumerate(figure.subplots(2, 5, sharex=True, sharey=True).ravel()):
        mine = labels == digit
        for chosen, colour in ((~mine, "#dddddd"), (mine, DIGITS[digit])):
            axes.scatter(*places[chosen].T, s=DOT / 2, color=colour, linewidths=0, rasterized=True)
        axes.set(
            title=f"{digit}: {mine.sum():,} rows, spread {spreads[digit]:.0f}", aspect="equal", xticks=[], yticks=[]
        )
        axes.title.set(fontsize=9, color=INK)
        axes.spines[:].set(color=GRID)
    figure.suptitle(words, fontsize=12, color=INK)
    return as_png(figure)


def along_axes(places, labels, words, units):
    """How the points (n, 2) of each digit are distributed along either axis."""
    figure = Figure(figsize=(11, 3.8), facecolor="white", layout="constrained")
    for number, axes in enumerate(figure.subplots(1, 2)):
        edges = np.linspace(places[:, number].min(), places[:, number].max(), 80)
        for digit in np.unique(labels):
            heights, _ = np.histogram(places[labels == digit, number], edges)
            axes.stairs(heights, edges, color=DIGITS[digit], linewidth=1.3)
        axes.set(xlabel=f"{units} {number + 1}", ylabel="rows")
        plain(axes)
    figure.suptitle(words, fontsize=12, color=INK)
    legend(figure)
    return as_png(figure)


def pairs(groups, words):
    """Rows of pairs of images: by name, a list of (image, words, image, words)."""
    columns = max(1, *(len(group) for group in groups.values())) if groups else 1
    figure = Figure(figsize=(11, 0.7 + 1.15 * max(1, len(groups))), facecolor="white")
    axes = cells(figure, 2 * columns, max(1, len(groups)), left=1.1, right=0.1, top=0.5, bottom=0.1)
    title(figure, words)
    for line, (name, group) in enumerate(groups.items()):
        axes.text(-0.15, line + 0.6, name, ha="right", va="center", fontsize=9, color=INK)
        for number, (first, about_first, second, about_second) in enumerate(group):
            for side, pixels, about in ((0, first, about_first), (1, second, about_second)):
                left = 2 * number + side + (0.07 if side == 0 else 0.01)
                axes.text(left + 0.45, line + 0.2, about, ha="center", va="bottom", fontsize=7, color=INK)
                image(axes, pixels, (left, line + 0.22), (0.92, 0.76))
    if not any(groups.values()):
        figure.text(0.5, 0.4, "none", ha="center", fontsize=11, color=INK)
    return as_png(figure)


def points(axes, places, labels):
    """In a random order, so that no digit covers the others."""
    order = np.random.default_rng(0).permutation(len(places))
    colours = np.array(DIGITS)[labels[order]]
    axes.scatter(*places[order].T, s=max(DOT, 2e4 / len(places)), c=colours, linewidths=0, rasterized=True)


def legend(figure):
    handles = [Line2D([], [], marker="o", linestyle="none", color=colour) for colour in DIGITS]
    figure.legend(handles, range(10), loc="outside right upper", frameon=False, fontsize=10, title="digit")
