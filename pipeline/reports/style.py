"""What all pictures share: colours, axes, small images, legends, and the conversion to PNG and GIF."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.shapes import Float, Integer, Shaped, UInt8


@contextlib.contextmanager
def _any_environment() -> Iterator[None]:
    """Import matplotlib whatever MPLBACKEND says, and without its messages about the user's files and folders."""
    logger, is_first = logging.getLogger("matplotlib"), "matplotlib" not in sys.modules
    level, backend = logger.level, os.environ.pop("MPLBACKEND", None)
    logger.setLevel(logging.ERROR)
    if os.path.expanduser("~") == "~":  # an account without a home folder, for which matplotlib 3.9 raises an error
        os.environ.setdefault("MPLCONFIGDIR", os.devnull)  # matplotlib replaces it by a temporary folder
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"matplotlib cannot read its settings: a file matplotlibrc is not UTF-8 ({error})") from None
    finally:
        logger.setLevel(level)
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend and is_first:  # for the pictures of a user who calls this module
        with contextlib.suppress(ValueError):  # a notebook's backend, which this environment lacks
            rcParams["backend"] = backend


with _any_environment():
    from matplotlib import rc_context, rcParams, rcParamsDefault
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

INK, GRID = "#222222", "#dddddd"
# Okabe and Ito's palette, which colour-blind readers can distinguish.
BLUE, ORANGE = "#0072b2", "#d55e00"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")  # for more lines than colours
# The ten digits in every picture: P. Tol's muted palette, and black.
DIGITS = (
    *("#332288", "#88ccee", "#44aa99", "#117733", "#999933"),
    *("#ddcc77", "#cc6677", "#882255", "#aa4499", "#000000"),
)
SIGNED, INKED = "RdBu_r", "gray_r"  # colour maps: blue below zero and red above; white for 0 and black for the maximum
POINT_SIZE = 1.2  # points^2, in a scatter plot of tens of thousands of rows


@contextlib.contextmanager
def default_parameters() -> Iterator[None]:
    """Draw with matplotlib's default parameters instead of the user's, which are restored afterwards."""
    with rc_context():
        # Much faster than rcParams.update, which validates all values again. rc_context does not restore the backend.
        defaults: Any = {key: value for key, value in dict.items(rcParamsDefault) if key != "backend"}
        dict.update(rcParams, defaults)
        yield


def new_figure(
    width: float, height: float, title: str = "", layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """A figure of a size in inches that arranges its axes by itself, unless `layout` is None."""
    figure = Figure(figsize=(width, height), facecolor="white", layout=layout)
    if title:
        figure.suptitle(title, fontsize=12, color=INK)
    return figure


def image_grid(
    title: str,
    size: tuple[float, float],
    columns: float,
    rows: float,
    left: float = 0.1,
    right: float = 0.1,
    bottom: float = 0.1,
) -> tuple[Figure, Axes]:
    """A figure with one invisible axes of columns x rows units for `draw_image`, since axes take 10 ms each.

    size, left, right, bottom: of the figure and its margins, in inches.
    """
    width, height = size
    figure = Figure(figsize=size, facecolor="white")
    figure.suptitle(title, y=1 - 0.1 / height, fontsize=12, color=INK)
    box = (left / width, bottom / height, (width - left - right) / width, (height - 0.5 - bottom) / height)
    axes = figure.add_axes(box, autoscale_on=False, xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    return figure, axes


def draw_image(
    axes: Axes,
    values: Shaped[np.ndarray, "height width"],
    corner: tuple[float, float],
    size: tuple[float, float],
    limits: tuple[float, float] = (0, 255),
    colour_map: str = INKED,
) -> None:
    """Draw an image with a frame, by default of gray levels from 0 (white) to 255 (black).

    corner: the upper left one. limits: the values with the first and the last colour.
    """
    (x, y), (width, height) = corner, size
    extent, (low, high) = (x, x + width, y + height, y), limits
    axes.imshow(values, colour_map, vmin=low, vmax=high, interpolation="nearest", extent=extent, aspect="auto")
    axes.add_patch(Rectangle(corner, width, height, fill=False, color=GRID, linewidth=0.8))


def label_row(axes: Axes, y: float, text: str, x: float = -0.1, fontsize: float = 9) -> None:
    """Write to the left of a row of images."""
    axes.text(x, y, text, ha="right", va="center", fontsize=fontsize, color=INK)


def label_image(axes: Axes, x: float, y: float, text: str, fontsize: float = 7) -> None:
    """Write above an image, centred."""
    axes.text(x, y, text, ha="center", va="bottom", fontsize=fontsize, color=INK)


def format_axes(axes: Axes, grid: bool = True, title_size: float | None = None) -> None:
    """Remove the box around the axes and add a thin grid."""
    if grid:
        axes.grid(color=GRID, linewidth=0.6, which="both")
        axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_color(INK)
    if title_size:
        axes.title.set_fontsize(title_size)
    axes.tick_params(which="both", labelsize=8)


def use_integer_ticks(axis: Axis) -> None:
    """Show whole numbers only, as for epochs."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def format_log_axis(axis: Axis) -> None:
    """Write numbers without exponents, and enough of them for a logarithmic axis that spans less than a decade."""
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 10_000 else f"{x:,g}")


def line_style(number: int) -> dict[str, Any]:
    """Colour and line style of the line with this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number // len(COLOURS) % len(LINE_STYLES)],
    }


def scatter_points(axes: Axes, points: Float[np.ndarray, "n d"], labels: Integer[np.ndarray, " n"]) -> None:
    """Draw points in the colours of their digits, in random order, so that no digit covers the others."""
    order = np.random.default_rng(0).permutation(len(points))
    style: dict[str, Any] = {"s": max(POINT_SIZE, 2e4 / len(points)), "c": np.array(DIGITS)[labels[order]]}
    axes.scatter(*points[order].T, linewidths=0, rasterized=True, **style)


def add_digit_legend(figure: Figure) -> None:
    """A legend of the digits' colours at the right."""
    handles = [Line2D([], [], marker="o", linestyle="none", color=colour) for colour in DIGITS]
    labels = [str(digit) for digit in range(10)]
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=10, title="digit")


def add_legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for panels with the same lines, below them."""
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)


def to_gif(frames: Sequence[Image.Image], milliseconds: int, last_milliseconds: int) -> bytes:
    """Frames as the bytes of a GIF file that repeats, with the duration of a frame and of the last one."""
    content, durations = io.BytesIO(), [milliseconds] * (len(frames) - 1) + [last_milliseconds]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return content.getvalue()


def drawable(text: str) -> str:
    """The text with "?" for each character that is not printable, or that the font of the pictures lacks."""
    font = get_font(findfont(FontProperties()))
    return "".join(char if char.isprintable() and font.get_char_index(ord(char)) else "?" for char in text)


def to_pixels(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """The figure's pixels: red, green and blue."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def to_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()
