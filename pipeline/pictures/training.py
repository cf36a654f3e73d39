"""The pictures of a training: what it was given, how it went, and where the network is wrong."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.pictures.style import FIRST, GRID, INK, SECOND, as_png, cells, image, title


def contact_sheet(images, variants):
    """A grid of images (variants, digits, 28, 28): a row each variant, a column each digit."""
    rows, columns = images.shape[:2]
    words = "Offline variants of the first training image of each digit"
    if rows == 1:
        words = "The first training image of each digit (this recipe has no offline variants)"
    figure = Figure(figsize=(1.6 + 0.72 * columns, 0.75 + 0.72 * rows), facecolor="white")
    axes = cells(figure, columns, rows, left=1.4, right=0.15, top=0.5, bottom=0.15)
    title(figure, words)
    for row, (kind, amount) in enumerate(variants):
        axes.text(-0.1, row + 0.5, _variant_name(kind, amount), ha="right", va="center", fontsize=9, color=INK)
        for column in range(columns):
            image(axes, images[row, column], (column + 0.04, row + 0.04), (0.92, 0.92))
    return as_png(figure)


def _variant_name(kind, amount):
    if kind == "shift":
        (right, down), words = amount, []
        if right:
            words.append(f"{abs(right):g} px {'right' if right > 0 else 'left'}")
        if down:
            words.append(f"{abs(down):g} px {'down' if down > 0 else 'up'}")
        return ",\n".join(words) or "no shift"
    return {"original": "original", "rotate": f"rotated {amount:+g}°", "zoom": f"zoomed x{amount:g}"}[kind]


def curves(histories, keep):
    """Loss and accuracy against epochs, a line each history; the kept epoch is marked where there is but one.

    histories: lists of dicts as `training.fit` makes them.
    """
    one = len(histories) == 1
    validated = "validation_loss" in histories[0][0]
    width = 9 if validated else 5
    figure = Figure(figsize=(width, 3.8), facecolor="white")
    # Not a layout that measures every text: drawn after each epoch, it would take twice as long, 0.2 s.
    figure.subplots_adjust(0.75 / width, 0.13, 1 - 0.15 / width, 0.91 if one else 0.85, 0.24)
    loss, *rest = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    style = {"marker": "."} if one else {"linewidth": 0.8, "alpha": 0.6}
    highest = 0
    for number, history in enumerate(histories):
        epochs = [row["epoch"] for row in history]
        training, validation = ("training", _validation_label(history)) if number == 0 else (None, None)
        loss.plot(epochs, [row["train_loss"] for row in history], color=SECOND, label=training, **style)
        for error in rest:
            loss.plot(epochs, [row["validation_loss"] for row in history], color=FIRST, label=validation, **style)
            wrong = [100 * (1 - row["validation_accuracy"]) for row in history]
            highest = max(highest, *wrong)
            error.plot(epochs, wrong, color=FIRST, label=validation, **style)
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter("{x:.1g}")
    for error in rest:
        error.set(title="Error", xlabel="epoch", ylabel="wrong answers (%)", ylim=(0, highest * 1.05 or 1))
    if not one:
        figure.suptitle(f"{len(histories)} networks", fontsize=11, color=INK)
    kept = min(histories[0], key=lambda row: row["validation_loss"]) if keep == "best" else histories[0][-1]
    word = "least validation loss" if keep == "best" else "last epoch"
    for axes in (loss, *rest):
        if one:
            axes.axvline(kept["epoch"], color=INK, linewidth=0.8, linestyle=":", label=f"kept: {word}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return as_png(figure)


def _validation_label(history):
    """The legend's entry, which says from which epoch on the averaged weights were validated, if not always."""
    averaged = [row["epoch"] for row in history if row.get("averaged_weights") == 1]
    if len(averaged) == len(history) or "averaged_weights" not in history[0]:
        return "validation"
    return f"validation (averaged from epoch {averaged[0]})" if averaged else "validation (not averaged yet)"


def confusion(counts):
    """The confusion matrix (10, 10): the colour shows errors only, so that the diagonal does not drown them."""
    figure = Figure(figsize=(6.2, 5.8), facecolor="white", layout="constrained")
    axes = figure.subplots()
    errors = counts - np.diag(np.diag(counts))
    axes.imshow(np.ma.masked_equal(errors, 0), cmap="Oranges", vmin=0, vmax=max(1, errors.max() * 1.3))
    for true in range(10):
        for predicted in range(10):
            count = counts[true, predicted]
            diagonal = true == predicted
            if count:
                weight = "normal" if diagonal else "bold"
                axes.text(
                    predicted,
                    true,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=INK if not diagonal else "#666666",
                    weight=weight,
                )
    axes.set(xlabel="predicted digit", ylabel="true digit", xticks=range(10), yticks=range(10))
    axes.set_title(f"Validation: {errors.sum():,} of {counts.sum():,} wrong (errors coloured)", fontsize=11)
    axes.set_xticks(np.arange(-0.5, 10), minor=True)
    axes.set_yticks(np.arange(-0.5, 10), minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return as_png(figure)


def mistakes(images, labels, predicted, probabilities, rows, words, none):
    """Images with rows in train.csv, labels, answers and their probabilities; `none` is what to say of none."""
    columns = 8
    lines = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(11, 0.7 + 1.75 * lines), facecolor="white")
    axes = cells(figure, columns, lines, left=0.1, right=0.1, top=0.5, bottom=0.1)
    title(figure, words)
    for number, (pixels, label, answer, probability, row) in enumerate(
        zip(images, labels, predicted, probabilities, rows, strict=True)
    ):
        line, column = divmod(number, columns)
        text = f"label {label}, said {answer}\n{probability[answer]:.1%}  (row {row})"
        axes.text(column + 0.5, line + 0.24, text, ha="center", va="bottom", fontsize=8, color=INK)
        image(axes, pixels, (column + 0.06, line + 0.27), (0.88, 0.68))
    if not len(images):
        figure.text(0.5, 0.4, none, ha="center", fontsize=11, color=INK)
    return as_png(figure)
