"""Pictures of a training: its augmented images, its curves, and the errors of its networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.reports import style
from pipeline.shapes import Float, Int64, UInt8

History = Sequence[Mapping[str, float]]  # a row for each epoch


@style.default_parameters()
def samples(
    images: UInt8[np.ndarray, "n 28 28"],
    labels: UInt8[np.ndarray, " n"],
    columns: int = 20,
    title: str = "The first training images of each digit",
) -> bytes:
    """A grid with a row for each digit: its first images from left to right."""
    figure, axes = style.image_grid(title, (11, 6.1), columns, 10, left=0.4)
    for digit in range(10):
        style.label_row(axes, digit + 0.5, str(digit), x=-0.2, fontsize=12)
        for column, pixels in enumerate(images[labels == digit][:columns]):
            style.draw_image(axes, pixels, (column + 0.03, digit + 0.03), (0.94, 0.94))
    return style.to_png(figure)


@style.default_parameters()
def contact_sheet(images: UInt8[np.ndarray, "variants digits 28 28"], variants: Sequence[tuple[str, Any]]) -> bytes:
    """A grid of images with a row for each offline variant (kind, amount) and a column for each digit."""
    n_variants, n_digits = images.shape[:2]
    title = "Offline variants of the first training image of each digit"
    if n_variants == 1:
        title = "The first training image of each digit (this recipe has no offline variants)"
    size = (1.6 + 0.72 * n_digits, 0.75 + 0.72 * n_variants)
    figure, axes = style.image_grid(title, size, n_digits, n_variants, left=1.4)
    for row, (kind, amount) in enumerate(variants):
        style.label_row(axes, row + 0.5, _name_variant(kind, amount))
        for column, pixels in enumerate(images[row]):
            style.draw_image(axes, pixels, (column + 0.04, row + 0.04), (0.92, 0.92))
    return style.to_png(figure)


def _name_variant(kind: str, amount: Any) -> str:
    if kind == "shift":
        right, down = amount
        parts = [f"{abs(right):g} px {'right' if right > 0 else 'left'}"] if right else []
        parts += [f"{abs(down):g} px {'down' if down > 0 else 'up'}"] if down else []
        return ",\n".join(parts) or "no shift"
    return {"original": "original", "rotate": f"rotated {amount:+g}°", "zoom": f"zoomed x{amount:g}"}[kind]


@style.default_parameters()
def curves(histories: Sequence[History], checkpoint_selection: str) -> bytes:
    """Loss and error against epochs, with a line for each network; the kept epoch is marked if there is one network."""
    single, validated = len(histories) == 1, "validation_loss" in histories[0][0]
    width = 9 if validated else 5
    figure = style.new_figure(width, 3.8, layout=None)
    # Not a constrained layout: this picture is drawn after each epoch, and measuring its texts would double the time to
    # 0.2 s.
    figure.subplots_adjust(0.75 / width, 0.13, 1 - 0.15 / width, 0.91 if single else 0.85, 0.24)
    panels = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    loss, error = panels[0], panels[-1]
    line: dict[str, Any] = {"marker": "."} if single else {"linewidth": 0.8, "alpha": 0.6}
    max_error = 0.0
    for number, history in enumerate(histories):
        epochs, losses = [row["epoch"] for row in history], [row["train_loss"] for row in history]
        loss.plot(epochs, losses, color=style.ORANGE, label="training" if number == 0 else None, **line)
        if validated:
            rows = [row for row in history if "validation_loss" in row]
            epochs, losses = [row["epoch"] for row in rows], [row["validation_loss"] for row in rows]
            errors = [100 * (1 - row["validation_accuracy"]) for row in rows]
            validation = _validation_label(rows) if number == 0 else None
            loss.plot(epochs, losses, color=style.BLUE, label=validation, **line)
            max_error = max(max_error, *errors)
            error.plot(epochs, errors, color=style.BLUE, label=validation, **line)
    if validated:
        error.set(title="Error", xlabel="epoch", ylabel="error rate (%)", ylim=(0, max_error * 1.05 or 1))
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    style.format_log_axis(loss.yaxis)
    if not single:
        figure.suptitle(f"{len(histories)} networks", fontsize=11, color=style.INK)
    kept, label = histories[0][-1]["epoch"], "kept: last epoch"
    if checkpoint_selection == "best":
        kept, label = min(histories[0], key=lambda row: row["validation_loss"])["epoch"], "kept: lowest validation loss"
    for axes in panels:
        if single:
            axes.axvline(kept, color=style.INK, linewidth=0.8, linestyle=":", label=label)
        style.use_integer_ticks(axes.xaxis)
        axes.grid(color=style.GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return style.to_png(figure)


def _validation_label(rows: History) -> str:
    """The legend's entry, with the epoch from which on the averaged weights were validated, if not always."""
    averaged = [int(row["epoch"]) for row in rows if row.get("averaged_weights") == 1]
    if len(averaged) == len(rows) or "averaged_weights" not in rows[0]:
        return "validation"
    return f"validation (averaged from epoch {averaged[0]})" if averaged else "validation (not averaged yet)"


@style.default_parameters()
def confusion(counts: Int64[np.ndarray, "10 10"]) -> bytes:
    """The confusion matrix; only errors are coloured, since the diagonal would outshine them."""
    figure = style.new_figure(6.2, 5.8)
    axes = figure.subplots()
    errors = counts - np.diag(np.diag(counts))
    axes.imshow(np.ma.masked_equal(errors, 0), cmap="Oranges", vmin=0, vmax=max(1, errors.max() * 1.3))
    for label, prediction in np.argwhere(counts):
        colour, weight = ("#666666", "normal") if label == prediction else (style.INK, "bold")
        text = f"{counts[label, prediction]:,}"
        axes.text(prediction, label, text, ha="center", va="center", fontsize=9, color=colour, weight=weight)
    axes.set(xlabel="predicted digit", ylabel="true digit", xticks=range(10), yticks=range(10))
    axes.set_title(f"Held-out rows: {errors.sum():,} of {counts.sum():,} wrong (errors coloured)", fontsize=11)
    axes.set_xticks(np.arange(-0.5, 10), minor=True)
    axes.set_yticks(np.arange(-0.5, 10), minor=True)
    axes.grid(which="minor", color=style.GRID, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return style.to_png(figure)


@style.default_parameters()
def errors(
    images: UInt8[np.ndarray, "n 28 28"],
    labels: UInt8[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n 10"],
    rows: Int64[np.ndarray, " n"],
    title: str,
    empty: str,
) -> bytes:
    """Images with label, prediction, its probability and the row of train.csv; `empty` is shown if there are none."""
    columns = 8
    lines = max(1, -(-len(images) // columns))
    figure, axes = style.image_grid(title, (11, 0.7 + 1.75 * lines), columns, lines)
    predictions, confidence = probabilities.argmax(1), probabilities.max(1)
    for number, (pixels, row) in enumerate(zip(images, rows, strict=True)):
        line, column = divmod(number, columns)
        text = f"label {labels[number]}, predicted {predictions[number]}\n{confidence[number]:.1%}  (row {row})"
        style.label_image(axes, column + 0.5, line + 0.24, text, fontsize=8)
        style.draw_image(axes, pixels, (column + 0.06, line + 0.27), (0.88, 0.68))
    if not len(images):
        figure.text(0.5, 0.4, empty, ha="center", fontsize=11, color=style.INK)
    return style.to_png(figure)
