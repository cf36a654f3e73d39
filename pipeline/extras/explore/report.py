"""The pictures of the data, and the page that shows them."""

from collections.abc import Mapping
from typing import Any

from pipeline.extras.explore import figures
from pipeline.extras.explore.entry import CAPTIONS
from pipeline.extras.explore.study import DatasetStudy
from pipeline.reports import page, training_figures


def draw(study: DatasetStudy) -> dict[str, bytes]:
    """The pictures by file name."""
    labels, digits, coordinates = study.labels, study.digits, study.coordinates
    tsne, tsne_labels, accuracy = study.tsne, study.tsne_labels, study.neighbour_accuracy
    tsne_title = f"t-SNE of {len(tsne):,} training rows (nearest-neighbour accuracy {accuracy:.1%})"

    def pair(first: str, i: int, second: str, j: int) -> figures.ImagePair:
        return (study.images[first][i], f"{first} {i + 1}"), (study.images[second][j], f"{second} {j + 1}")

    similar = {
        f"{first} and {second}": [pair("train", i, "train", j) for i, j in pairs.tolist()]
        for (first, second), pairs in study.similar.items()
    }
    near_copies = {
        " and ".join(dict.fromkeys(tables)): [pair(tables[0], i, tables[1], j) for i, j, _ in pairs]
        for tables, pairs in study.near_copies.items()
    }
    return {
        "samples.png": training_figures.samples(study.images["train"], labels),
        "counts.png": figures.counts(digits.rows),
        "means.png": figures.means(digits.mean, digits.std),
        "greys.png": figures.gray_levels(digits.gray_levels, digits.ink),
        "variance.png": figures.variance(study.variance_ratios),
        "components.png": figures.components(study.components),
        "pca_2d.png": figures.scatter(coordinates[:, :2], labels, "The first two principal components", "component"),
        "pca_3d.png": figures.scatter_3d(coordinates[:, :3], labels),
        "tsne.png": figures.scatter(tsne, tsne_labels, tsne_title, "t-SNE"),
        "tsne_each.png": figures.each_digit(tsne, tsne_labels, study.spread),
        "tsne_axes.png": figures.along_axes(tsne, tsne_labels),
        "look_alikes.png": figures.pairs(similar, "Nearest rows of different digits (rows of train.csv)"),
        "near_copies.png": figures.pairs(near_copies, "The nearest pairs of rows that are not equal"),
    }


def summarize(numbers: Mapping[str, Any]) -> list[str]:
    """Sentences on the data, from the content of `explore.json`."""
    ink = {digit["digit"]: digit["ink"] for digit in numbers["by_digit"] if digit["ink"] is not None}
    least, most = min(ink, key=ink.__getitem__), max(ink, key=ink.__getitem__)
    copies, tsne = numbers["copies"], numbers["tsne"]
    return [
        f"{numbers['rows']:,} training rows and {numbers['test_rows']:,} test rows.",
        f"Digit {least} has the least ink ({ink[least]:.1%} of full ink), digit {most} the most ({ink[most]:.1%}).",
        f"Exact copies: {copies['train-train']} training rows repeat an earlier training row, {copies['test-test']} "
        f"test rows repeat an earlier test row, {copies['train-test']} test rows repeat a training row.",
        f"In t-SNE of {tsne['rows']:,} rows, the nearest-neighbour accuracy is {tsne['neighbour_accuracy']:.1%}.",
    ]


def render(pictures: Mapping[str, bytes], numbers: Mapping[str, Any]) -> bytes:
    """The page, from the pictures by file name and the content of `explore.json`."""
    parts = [page.paragraph(sentence) for sentence in summarize(numbers)]
    parts += [page.captioned_picture(name, pictures[name], caption) for name, caption in CAPTIONS.items()]
    return page.render("The data", parts)
