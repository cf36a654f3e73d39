"""The pictures of a comparison: PNG bytes from numbers by recipe."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from pipeline.pictures.style import COLOURS, as_png, plain

DASHES = ("-", "--", ":", "-.")  # where there are more lines than colours


def _style(number):
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def bands(series):
    """Wrong answers against epochs: a line of the mean over seeds for each recipe, and a band from least to most.

    series: by recipe, {"accuracies": (seeds, epochs)}.
    """
    figure = Figure(figsize=(9, 4.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    for number, (name, one) in enumerate(series.items()):
        wrong = _wrong(one["accuracies"])
        epochs = np.arange(1, wrong.shape[1] + 1)
        style = _style(number)
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, wrong.mean(0), label=_label(name), linewidth=1.6, marker=marker, **style)
        axes.fill_between(epochs, wrong.min(0), wrong.max(0), color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="wrong answers (%)", title="Mean over seeds; bands from the least to the most")
    axes.set_yscale("log")
    _logarithmic(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    plain(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return as_png(figure)


def costs(series):
    """Wrong answers against seconds of training, and against parameters: a point for each recipe.

    series: by recipe, {"mean": accuracy, "seconds", "parameters"}.
    """
    figure = Figure(figsize=(10, 4.8), facecolor="white", layout="constrained")
    for axes, what, label in zip(
        figure.subplots(1, 2, sharey=True), ("seconds", "parameters"), ("training (s)", "parameters"), strict=True
    ):
        for number, (name, one) in enumerate(series.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
            shown = {"label": _label(name)} if what == "seconds" else {}
            axes.plot(one[what], _wrong(one["mean"]), linestyle="none", markersize=7, **style, **shown)
        axes.set(xlabel=label, xscale="log", yscale="log")
        _logarithmic(axes.xaxis)
        _logarithmic(axes.yaxis)
        axes.margins(0.08)
        plain(axes)
    figure.axes[0].set_ylabel("wrong answers (%)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return as_png(figure)


MARKERS = ("o", "s", "^", "D")


def _wrong(accuracy):
    """In per cent, and not less than a logarithmic axis can show: 0.005 is less than one of 10,500 rows."""
    return np.maximum(100 * (1 - np.asarray(accuracy)), 0.005)


def _label(name):
    return name.rpartition("/")[2]


def _logarithmic(axis):
    """Numbers as they are read, and enough of them also where the axis spans less than a decade."""
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 100 else f"{x:g}")
