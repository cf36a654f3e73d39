"""Pictures of a comparison: learning curves over seeds, and error against training time and size."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.extras.compare.statistics import Row
from pipeline.reports import style
from pipeline.shapes import Float64

MARKERS = ("o", "s", "^", "D")
MIN_ERROR = 0.005  # %; a logarithmic axis cannot show 0, and one of 10,500 rows is 0.01%


@style.default_parameters()
def error_bands(accuracies: Mapping[str, Float64[np.ndarray, "seeds epochs"]]) -> bytes:
    """Error against epochs: for each recipe a line for the mean over seeds and a band from minimum to maximum.

    accuracies: by recipe; NaN in epochs that were not measured.
    """
    figure = style.new_figure(9, 4.6)
    axes = figure.subplots()
    for number, (recipe, of_recipe) in enumerate(accuracies.items()):
        is_measured = ~np.isnan(of_recipe).any(0)
        epochs = 1 + np.flatnonzero(is_measured)
        errors, line = _error(of_recipe[:, is_measured]), style.line_style(number)
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, errors.mean(0), label=_label(recipe), linewidth=1.6, marker=marker, **line)
        axes.fill_between(epochs, errors.min(0), errors.max(0), color=line["color"], alpha=0.15, linewidth=0)
    title = "Mean over seeds, with bands from minimum to maximum"
    axes.set(xlabel="epoch", ylabel="error rate (%)", title=title, yscale="log")
    style.format_log_axis(axes.yaxis)
    style.use_integer_ticks(axes.xaxis)
    style.format_axes(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return style.to_png(figure)


@style.default_parameters()
def costs(rows: Mapping[str, Row]) -> bytes:
    """Error against training time and against the number of parameters, with a point for each recipe."""
    figure = style.new_figure(10, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (recipe, row) in enumerate(rows.items()):
        point: dict[str, Any] = {"color": style.line_style(number)["color"], "linestyle": "none", "markersize": 7}
        point["marker"] = MARKERS[number // len(style.COLOURS) % len(MARKERS)]
        error = _error(np.array(row.accuracy))
        left.plot(row.training_seconds, error, label=_label(recipe), **point)
        right.plot(row.parameters, error, **point)
    for axes, label in ((left, "training time (s)"), (right, "parameters")):
        axes.set(xlabel=label, xscale="log", yscale="log")
        style.format_log_axis(axes.xaxis)
        style.format_log_axis(axes.yaxis)
        axes.margins(0.08)
        style.format_axes(axes)
    left.set_ylabel("error rate (%)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return style.to_png(figure)


def _error(accuracy: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """The error rate in per cent."""
    return np.asarray(np.maximum(100 * (1 - accuracy), MIN_ERROR))


def _label(recipe: str) -> str:
    return recipe.rpartition("/")[2]
