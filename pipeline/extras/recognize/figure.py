"""The picture of recognized digits: each prepared image with its prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.reports import style
from pipeline.shapes import UInt8

MAX_COLUMNS = 10
MAX_LABEL = 18  # characters below an image


@style.default_parameters()
def draw(
    images: Sequence[UInt8[np.ndarray, "28 28"]],
    files: Sequence[str],
    predictions: Sequence[str],
    unsure: Sequence[bool],
    n_images: int,
) -> bytes:
    """The images, as the network gets them, with prediction and file name; unsure ones in orange.

    n_images: how many there are in total, if only the first ones are shown.
    """
    columns = min(MAX_COLUMNS, max(len(images), 3))
    rows = math.ceil(len(images) / columns)
    shown = f"The first {len(images)} of {n_images:,} images" if len(images) < n_images else "Images"
    figure, axes = style.image_grid(
        f"{shown} in MNIST's form, and their predictions", (columns * 1.2 + 0.2, rows * 1.6 + 0.7), columns, rows
    )
    for number, image in enumerate(images):
        y, x = divmod(number, columns)
        colour = style.ORANGE if unsure[number] else style.INK
        text = f"{predictions[number]}?" if unsure[number] else predictions[number]
        style.draw_image(axes, image, (x + 0.08, y + 0.22), (0.84, 0.63))
        axes.text(x + 0.5, y + 0.18, text, ha="center", va="bottom", fontsize=11, color=colour)
        label = _label(files[number], number + 1)
        axes.text(x + 0.5, y + 0.88, label, ha="center", va="top", fontsize=6.5, color=style.INK, parse_math=False)
    return style.to_png(figure)


def _label(file: str, row: int) -> str:
    """The name of a file, shortened in the middle; with its row in recognized.csv if the font lacks characters."""
    name = Path(file).name
    drawable = style.drawable(name)
    label = drawable if drawable == name else f"row {row}: {drawable}"
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 9]}…{label[-8:]}"
