"""The pictures of a trained network: its features, weights and feature maps, and where it looks."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from pipeline.pictures.data import legend, points
from pipeline.pictures.style import COLOURS, DIGITS, FIRST, INK, SECOND, as_png, cells, image, plain, title

ACROSS = 32  # feature maps in a row
MAP = 0.29  # inches
MOST = 128  # filters
FRAMES = 40  # at most, of an animation
SIGNED, INKED = "RdBu_r", "gray_r"


def embeddings(panels, labels):
    """Scatters side by side, pairs of words and points (n, 2), coloured by the rows' labels (n,)."""
    figure = Figure(figsize=(13, 4.7), facecolor="white", layout="constrained")
    for axes, (words, places) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        points(axes, places, labels)
        middle, half = (places.max(0) + places.min(0)) / 2, 1.05 * np.ptp(places, 0).max() / 2
        axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), box_aspect=1)
        axes.set(title=words, xlabel="t-SNE 1", ylabel="t-SNE 2")
        plain(axes)
        axes.title.set_fontsize(10)
    legend(figure)
    return as_png(figure)


def filters(weights, words):
    """Weights (outputs, height, width) as images, red above zero and blue below, one scale for all."""
    if len(weights) > MOST:
        words, weights = f"{words} (the first {MOST} of {len(weights):,})", weights[:MOST]
    columns = min(16, len(weights))
    lines = -(-len(weights) // columns)
    size = min(0.62, 9.6 / columns) if len(weights) > 10 else 1.0
    figure = Figure(figsize=(max(7, 0.2 + size * columns), 0.6 + size * lines), facecolor="white")
    spare = (figure.get_figwidth() - size * columns) / 2
    axes = cells(figure, columns, lines, left=spare, right=spare, top=0.5, bottom=0.1)
    title(figure, words)
    limit = np.abs(weights).max()
    for number, pixels in enumerate(weights):
        line, column = divmod(number, columns)
        image(axes, pixels, (column + 0.05, line + 0.05), (0.9, 0.9), cmap=SIGNED, low=-limit, high=limit)
    return as_png(figure)


def last_layer(weights):
    """Weights (10, d) of the last layer, a row each digit, its inputs ordered by the digit that they speak for most."""
    order = np.lexsort((-weights.max(0), weights.argmax(0)))
    limit = np.quantile(np.abs(weights), 0.995)
    figure = Figure(figsize=(11, 3.4), facecolor="white", layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(weights[:, order], cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set(xlabel=f"its {weights.shape[1]:,} inputs, by the digit that they speak for most", ylabel="digit")
    axes.set(yticks=range(10), title="The last layer's weights")
    figure.colorbar(shown, ax=axes, label="weight", extend="both")
    plain(axes, grid=False)
    return as_png(figure)


def feature_maps(pixels, layers, probabilities, words):
    """What each layer makes of an image: pairs of words and an array (channels, height, width) or (values,).

    Red is above zero and blue below where a layer gives both, else black is the greatest; each layer has its own scale.
    """
    heights = [3 * MAP, *(_height(values) for _, values in layers)]
    gap, below = 0.09, 1.6
    tall = 0.55 + sum(heights) + gap * len(heights) + below
    figure = Figure(figsize=(11, tall), facecolor="white")
    title(figure, words)
    axes = cells(figure, 9.4, tall - 0.5 - below, left=1.5, right=0.1, top=0.5, bottom=below)  # units are inches
    image(axes, pixels, (0, 0), (3 * MAP, 3 * MAP))
    axes.text(-0.1, 1.5 * MAP, "the image", ha="right", va="center", fontsize=8, color=INK)
    top = 3 * MAP + gap
    for (about, values), height in zip(layers, heights[1:], strict=True):
        _outputs(axes, values, top, height)
        size = "" if values.ndim == 1 else f"\n{len(values)} of {values.shape[1]}x{values.shape[2]}"
        axes.text(-0.1, top + height / 2, about + size, ha="right", va="center", fontsize=8, color=INK)
        top += height + gap
    bars = figure.add_axes((1.5 / 11, 0.45 / tall, 9.4 / 11, (below - 0.75) / tall))
    drawn = bars.bar(range(10), 100 * probabilities, color=DIGITS)
    bars.bar_label(drawn, [f"{chance:.2%}" for chance in probabilities], fontsize=8, padding=2)
    bars.set(xlabel="digit", ylabel="probability (%)", xticks=range(10), ylim=(0, 118), yticks=(0, 50, 100))
    plain(bars, grid=False)
    return as_png(figure)


def _height(values):
    return 0.2 * -(-len(values) // 128) if values.ndim == 1 else MAP * -(-len(values) // ACROSS)


def _outputs(axes, values, top, height):
    """A layer's outputs, as one picture that starts at `top`: images are dear, one by one."""
    low, limit = float(values.min()), max(float(np.abs(values).max()), 1e-12)
    signed = low < 0
    if values.ndim == 1:
        columns = min(128, len(values))
        sheet = np.full((-(-len(values) // columns), columns), np.nan)
        sheet.ravel()[: len(values)] = values
        wide = max(9.3 * columns / 128, 2)
    else:
        count, rows, side = values.shape
        columns, lines = min(ACROSS, count), -(-count // ACROSS)
        edge = max(1, round(side / 12))  # between two maps
        sheet = np.full((lines * (rows + edge), columns * (side + edge)), np.nan)
        for number, one in enumerate(values):
            line, column = divmod(number, ACROSS)
            sheet[line * (rows + edge) :, column * (side + edge) :][:rows, :side] = one
        wide = MAP * columns
    axes.imshow(
        np.ma.masked_invalid(sheet),
        cmap=SIGNED if signed else INKED,
        vmin=-limit if signed else 0,
        vmax=limit,
        interpolation="nearest",
        extent=(0, wide, top + height, top),
        aspect="auto",
    )


def weight_spread(layers):
    """Histograms of each layer's weights, untrained and trained: (words, before, after), flat arrays."""
    figure, panels = _panels(len(layers), "Weights of each layer, untrained and trained")
    for axes, (words, before, after) in zip(panels, layers, strict=True):
        limit = max(np.abs(before).max(), np.abs(after).max())
        edges = np.linspace(-limit, limit, 81)
        for values, colour, name in ((before, "#999999", "untrained"), (after, FIRST, "trained")):
            heights = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(heights, edges, color=colour, label=name, fill=name == "untrained", alpha=0.9)
        axes.set(title=f"{words}: {len(after):,} weights", xlabel="weight", ylabel="weights (%)")
        axes.title.set_fontsize(9)
        plain(axes)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    return as_png(figure)


def weights_over_training(epochs, layers, kept):
    """Bands of each layer's weights over the epochs: (words, quantiles (epochs, 5): 1, 25, 50, 75, 99%).

    kept: the epoch whose weights were kept.
    """
    figure, panels = _panels(len(layers), "How each layer's weights spread while it trained")
    for axes, (words, found) in zip(panels, layers, strict=True):
        axes.fill_between(epochs, found[:, 0], found[:, 4], color=FIRST, alpha=0.2, linewidth=0, label="98% of weights")
        axes.fill_between(epochs, found[:, 1], found[:, 3], color=FIRST, alpha=0.4, linewidth=0, label="half of them")
        axes.plot(epochs, found[:, 2], color=INK, linewidth=1, label="median")
        axes.axvline(kept, color=INK, linewidth=0.8, linestyle=":", label="epoch kept")
        axes.set(title=words, xlabel="epoch (0: untrained)", ylabel="weight")
        axes.title.set_fontsize(9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        plain(axes)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    return as_png(figure)


def weights_animated(epochs, layers):
    """A GIF of each layer's weights, a frame an epoch, or some of them: (words, counts (epochs, bins), limits)."""
    figure, panels = _panels(len(layers), "Weights of each layer, epoch 0")
    drawn = []
    for axes, (words, counts, limits) in zip(panels, layers, strict=True):
        widest, bins = np.max(limits), np.shape(counts)[1]
        density = 100 * counts / np.sum(counts, 1, keepdims=True) * (bins / (2 * limits[:, None]))  # % a unit of weight
        drawn.append((axes.stairs(density[0], np.linspace(-1, 1, bins + 1), color=FIRST, fill=True), density, limits))
        axes.set(title=words, xlabel="weight", xlim=(-widest, widest), ylim=(0, 1.05 * density.max()), yticks=[])
        axes.set_ylabel("density (own scale)")
        axes.title.set_fontsize(9)
        plain(axes)
    canvas, frames = FigureCanvasAgg(figure), []
    for at in np.unique(np.linspace(0, len(epochs) - 1, min(FRAMES, len(epochs))).round().astype(int)):
        for stairs, density, limits in drawn:
            stairs.set_data(density[at], np.linspace(-limits[at], limits[at], density.shape[1] + 1))
        figure.suptitle(f"Weights of each layer, epoch {epochs[at]} of {epochs[-1]}", fontsize=12, color=INK)
        canvas.draw()
        figure.set_layout_engine("none")  # found once: it would take half of the time
        frame = Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())
        frames.append(frame.quantize(64, Image.Quantize.MEDIANCUT))
    content = io.BytesIO()
    times = [200] * (len(frames) - 1) + [3000]  # milliseconds
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return content.getvalue()


def gradients(epochs, layers):
    """Mean and greatest absolute gradient of each layer's weights over the epochs: (words, means, greatest)."""
    figure = Figure(figsize=(11, 4.2), facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2)
    for number, (words, *both) in enumerate(layers):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": ("-", "--", ":")[number // len(COLOURS) % 3]}
        for axes, values in zip(panels, both, strict=True):
            axes.plot(epochs, values, label=words, linewidth=1.3, marker="." if len(epochs) == 1 else None, **style)
    for axes, words in zip(panels, ("mean", "greatest"), strict=True):
        axes.set(title=f"The {words} gradient of each layer's weights", xlabel="epoch", yscale="log")
        axes.set(ylabel=f"{words} |gradient| (log scale)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        plain(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return as_png(figure)


def looks(groups, words):
    """Where a network looks: by a group's name, a list of (image, words, input gradient, occlusion)."""
    columns = max(1, *(len(group) for group in groups.values()))
    figure = Figure(figsize=(max(6.0, 1.5 + 1.06 * columns), 0.6 + 3.6 * len(groups)), facecolor="white")
    axes = cells(figure, columns, 3.3 * len(groups), left=1.4, right=0.1, top=0.5, bottom=0.1)
    title(figure, words)
    for number, (name, group) in enumerate(groups.items()):
        top = 3.3 * number
        names = (f"{name}:\nthe image", "input gradient", "occlusion")
        for line, about in enumerate(names):
            axes.text(-0.08, top + 0.75 + line, about, ha="right", va="center", fontsize=9, color=INK)
        for column, (pixels, about, gradient, fall) in enumerate(group):
            axes.text(column + 0.5, top + 0.23, about, ha="center", va="bottom", fontsize=7, color=INK)
            image(axes, pixels, (column + 0.04, top + 0.26), (0.92, 0.92))
            for line, values, least in ((1, gradient, 1e-12), (2, fall, 0.05)):  # a fall by a percent is pale
                limit = max(np.abs(values).max(), least)
                corner = (column + 0.04, top + 0.26 + line)
                image(axes, values, corner, (0.92, 0.92), cmap=SIGNED, low=-limit, high=limit)
                most = f"{limit:.2g}" if line == 1 else f"{max(0, values.max()):.0%}"
                axes.text(column + 0.07, corner[1] + 0.12, most, fontsize=6, color="#666666")
        if not group:
            axes.text(0.1, top + 1.75, "none", va="center", fontsize=11, color=INK)
    return as_png(figure)


def reliability(found, words):
    """Accuracy against confidence, and how many rows have which; `found` is of `metrics.calibration`."""
    figure = Figure(figsize=(6.4, 6.0), facecolor="white", layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    some = found["rows"] > 0
    middles = (found["edges"][1:] + found["edges"][:-1])[some] * 50
    above.plot([0, 100], [0, 100], color="#999999", linestyle=":", label="as confident as right")
    low, high = 100 * found["interval_95"][some].T
    centre = 100 * found["accuracy"][some]
    bars = np.maximum([centre - low, high - centre], 0)
    above.errorbar(
        100 * found["confidence"][some], centre, bars, color=FIRST, marker="o", linestyle="none", label="rows (95%)"
    )
    above.set(title=words, ylabel="right answers (%)", xlim=(0, 101), ylim=(0, 103))
    above.legend(frameon=False, fontsize=9, loc="upper left")
    below.bar(middles, found["rows"][some], width=100 / len(found["rows"]) * 0.92, color=SECOND)
    below.set(xlabel="confidence: the answer's probability (%)", ylabel="rows (log scale)", yscale="log")
    below.yaxis.set_major_formatter("{x:,.0f}")
    for axes in (above, below):
        plain(axes)
    above.title.set_fontsize(11)
    return as_png(figure)


def _panels(count, words):
    """A figure with a small axes for each of `count` layers."""
    lines = -(-count // 4)
    columns = max(2, -(-count // lines))
    figure = Figure(figsize=(2.9 * columns, 0.5 + 2.4 * lines), facecolor="white", layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_axis_off()
    figure.suptitle(words, fontsize=12, color=INK)
    return figure, panels[:count]
