"""Pictures of generated digits: samples, a film of the training, losses, nearest training rows, PCA and t-SNE."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.extras.generate.study import Embedding
from pipeline.reports import style
from pipeline.shapes import Float, UInt8

FILM_SCALE = 2  # screen pixels per pixel
FILM_MARGIN, FILM_HEADER = 4, 28  # screen pixels
FILM_MILLISECONDS, FILM_END_MILLISECONDS = 120, 3000  # per frame, and for the last one
GRAY_BITS = 5  # of a film's gray levels: a third of the size of 8 bits


@style.default_parameters()
def random_samples(images: UInt8[np.ndarray, "n 28 28"], labels: UInt8[np.ndarray, " n"]) -> bytes:
    """A grid of up to 100 generated digits; above each, the class that was requested."""
    columns, rows = 20, -(-min(len(images), 100) // 20)
    title = "Generated digits of random classes (above each: the class that was requested)"
    figure, axes = style.image_grid(title, (11, 0.6 + 0.72 * rows), columns, 1.35 * rows)
    for number, (pixels, label) in enumerate(zip(images[:100], labels[:100], strict=True)):
        row, column = divmod(number, columns)
        style.label_image(axes, column + 0.5, 1.35 * row + 0.3, str(label), fontsize=8)
        style.draw_image(axes, pixels, (column + 0.03, 1.35 * row + 0.35), (0.94, 0.94))
    return style.to_png(figure)


@style.default_parameters()
def film(frames: UInt8[np.ndarray, "epochs rows classes 28 28"]) -> bytes:
    """A GIF with a frame for each epoch: a column for each class, a row for each noise vector."""
    n_epochs, n_rows, n_classes = frames.shape[:3]
    tile = 28 * FILM_SCALE + FILM_MARGIN
    size = (n_classes * tile + FILM_MARGIN, n_rows * tile + FILM_HEADER + FILM_MARGIN)
    levels = (1 << GRAY_BITS) - 1
    palette = np.repeat(np.linspace(0, 255, levels + 1).round().astype(np.uint8), 3).tolist()
    font = ImageFont.load_default(size=15)
    pictures = []
    for epoch, frame in enumerate(frames, 1):
        picture = Image.new("P", size, levels)
        picture.putpalette(palette)
        ImageDraw.Draw(picture).text((FILM_MARGIN, 5), f"epoch {epoch} of {n_epochs}", 0, font)
        enlarged = (255 - frame).repeat(FILM_SCALE, -2).repeat(FILM_SCALE, -1) >> (8 - GRAY_BITS)
        for row in range(n_rows):
            for column in range(n_classes):
                corner = (FILM_MARGIN + column * tile, FILM_HEADER + row * tile)
                picture.paste(Image.fromarray(enlarged[row, column]), corner)
        pictures.append(picture)
    return style.to_gif(pictures, FILM_MILLISECONDS, FILM_END_MILLISECONDS)


@style.default_parameters()
def losses(history: Sequence[Mapping[str, float]]) -> bytes:
    """The losses of both networks against epochs."""
    figure = style.new_figure(8, 3.8, "Losses of the two networks, means over an epoch")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    for number, name in enumerate(("generator", "discriminator")):
        values = [row[f"{name}_loss"] for row in history]
        marker = "." if len(epochs) == 1 else None
        axes.plot(epochs, values, label=name, linewidth=1.5, marker=marker, **style.line_style(number))
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False, fontsize=9)
    style.use_integer_ticks(axes.xaxis)
    style.format_axes(axes)
    return style.to_png(figure)


@style.default_parameters()
def nearest(
    generated: UInt8[np.ndarray, "n 28 28"],
    labels: UInt8[np.ndarray, " n"],
    training: UInt8[np.ndarray, "n 28 28"],
    distances: Float[np.ndarray, " n"],
) -> bytes:
    """Each generated digit above the training image that is nearest to it in pixels."""
    columns = len(generated)
    title = "Generated digits and the nearest training images (above: class requested, distance in pixels)"
    figure, axes = style.image_grid(title, (max(8.0, 1.2 + 0.62 * columns), 2.2), columns, 2.5, left=1.0)
    for row, text in enumerate(("generated", "nearest\ntraining row")):
        style.label_row(axes, row + 0.95, text)
    for column in range(columns):
        text = f"{labels[column]}: {distances[column]:.1f}"
        style.label_image(axes, column + 0.5, 0.38, text)
        for row, pixels in enumerate((generated[column], training[column])):
            style.draw_image(axes, pixels, (column + 0.03, row + 0.45), (0.94, 0.94))
    return style.to_png(figure)


@style.default_parameters()
def embeddings(
    panels: Mapping[int, Embedding],
    labels: Mapping[int, tuple[UInt8[np.ndarray, " n"], UInt8[np.ndarray, " n"]]],
    title: str,
    axis_name: str,
) -> bytes:
    """Real digits (dots) and generated ones (crosses) in the colours of their classes, a panel for each number."""
    figure = style.new_figure(6.2 * len(panels) + 0.8, 6.2, title)
    colours = np.array(style.DIGITS)
    for axes, (n_rows, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        real_labels, generated_labels = labels[n_rows]
        size, width = (14, 1.0) if n_rows <= 200 else (7, 0.7)
        axes.scatter(*points.real.T, s=size, c=colours[real_labels], marker="o", alpha=0.5, linewidths=0)
        axes.scatter(*points.generated.T, s=1.8 * size, c=colours[generated_labels], marker="x", linewidths=width)
        axes.set(title=f"{n_rows:,} real (dots) and {n_rows:,} generated (crosses)", box_aspect=1)
        axes.set(xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2")
        style.format_axes(axes, title_size=10)
    style.add_digit_legend(figure)
    return style.to_png(figure)
