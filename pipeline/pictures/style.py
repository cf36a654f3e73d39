"""What all pictures share: colours, grids, small images, and how a figure becomes bytes."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

INK, GRID = "#222222", "#dddddd"
# Okabe and Ito's, which colour-blind eyes tell apart.
FIRST, SECOND = "#0072b2", "#d55e00"
COLOURS = (FIRST, SECOND, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# Of the ten digits, in every picture: P. Tol's muted ones, and black.
DIGITS = (
    *("#332288", "#88ccee", "#44aa99", "#117733", "#999933"),
    *("#ddcc77", "#cc6677", "#882255", "#aa4499", "#000000"),
)


def cells(figure, columns, rows, left, right, top, bottom):
    """Axes of columns x rows units within margins in inches; one for all, since each takes 10 ms to make."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(box, autoscale_on=False, xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    return axes


def image(axes, pixels, corner, size, cmap="gray_r", low=0, high=255):
    """Draw an image at its upper left corner, with a frame."""
    (x, y), (width, height) = corner, size
    extent = (x, x + width, y + height, y)
    axes.imshow(pixels, cmap=cmap, vmin=low, vmax=high, interpolation="nearest", extent=extent, aspect="auto")
    axes.add_patch(Rectangle(corner, width, height, fill=False, color=GRID, linewidth=0.8))


def title(figure, words):
    """A figure's title, a tenth of an inch below its upper edge."""
    figure.suptitle(words, y=1 - 0.1 / figure.get_figheight(), fontsize=12, color=INK)


def plain(axes, grid=True):
    """Axes without a box, with a thin grid."""
    if grid:
        axes.grid(color=GRID, linewidth=0.6, which="both")
        axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_color(INK)
    axes.tick_params(which="both", labelsize=8)


def as_png(figure):
    """The bytes of a PNG of a figure."""
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()
