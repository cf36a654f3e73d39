"""The pictures of generated digits, and the page that shows them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.extras.generate import figures
from pipeline.extras.generate.entry import CAPTIONS
from pipeline.extras.generate.study import GeneratedStudy
from pipeline.recipes.settings import Recipe
from pipeline.reports import page, training_figures
from pipeline.shapes import UInt8

N_NEAREST = 20  # generated digits shown with their nearest training rows


def draw(
    study: GeneratedStudy,
    frames: UInt8[np.ndarray, "epochs rows classes 28 28"],
    history: Sequence[Mapping[str, float]],
) -> dict[str, bytes]:
    """The pictures by file name."""
    generated, labels = study.generated
    order, shown = np.random.default_rng(0).permutation(len(labels)), slice(N_NEAREST)
    rows, distances = study.nearest.rows[shown], study.nearest.distances[shown]
    return {
        "random.png": figures.random_samples(generated[order], labels[order]),
        "by_class.png": training_figures.samples(generated, labels, title="The first generated digits of each class"),
        "film.gif": figures.film(frames),
        "losses.png": figures.losses(history),
        "nearest.png": figures.nearest(generated[shown], labels[shown], study.training.images[rows], distances),
        "pca.png": figures.embeddings(study.pca, study.plotted_labels, "PCA of the pixels", "component"),
        "tsne.png": figures.embeddings(study.tsne, study.plotted_labels, "t-SNE of the pixels", "t-SNE"),
    }


def summarize(numbers: Mapping[str, Any]) -> list[str]:
    """Sentences on the digits, from the content of `generate.json`."""
    generated, reference, nearest = numbers["generated"], numbers["training_rows"], numbers["nearest"]
    collapsed = min(
        (row for row in generated["by_class"] if row["diversity"] is not None), key=lambda r: r["diversity"]
    )
    return [
        f"{generated['recognized']:.1%} of {numbers['compared']:,} generated digits are recognized as their class "
        f"(training rows: {reference['recognized']:.1%}).",
        f"Fréchet distance {generated['frechet_distance']:.2f} ({reference['frechet_distance']:.2f}), precision "
        f"{generated['precision']:.3f} ({reference['precision']:.3f}), recall {generated['recall']:.3f} "
        f"({reference['recall']:.3f}).",
        f"The least diverse class is {collapsed['class']}: the mean distance of two digits is "
        f"{collapsed['diversity']:.0%} of that of real ones.",
        f"Median distance from the nearest training row: {nearest['generated']['median']:.2f}, for held-out rows "
        f"{nearest['held_out_rows']['median']:.2f}.",
    ]


def render(recipe: Recipe, judge: str, pictures: Mapping[str, bytes], numbers: Mapping[str, Any]) -> bytes:
    """The page.

    judge: the recipe of the classifier.
    numbers: the content of `generate.json`.
    """
    settings = [(field, str(value)) for field, value in recipe.gan.model_dump().items()]
    by_class = zip(numbers["generated"]["by_class"], numbers["training_rows"]["by_class"], strict=True)
    parts = [
        page.paragraph(recipe.about),
        *(page.paragraph(sentence) for sentence in summarize(numbers)),
        page.heading("Quality and diversity"),
        page.paragraph(
            f"{numbers['compared']:,} digits are compared with as many rows that neither the generator nor the "
            f"classifier was trained on. The classifier is the network of the recipe {judge}. As a reference, the last "
            "column compares training rows with the same rows. The classifier recognizes them better than new digits."
        ),
        page.table(("", "generated", "training rows"), _measures(numbers)),
        page.paragraph(
            "Diversity: the mean distance in pixels between two digits of a class, divided by that of two real ones. "
            "It is near 0 if a class has collapsed to one image."
        ),
        page.table(
            ("class", "recognized", "recognized (training rows)", "diversity", "diversity (training rows)"),
            [
                (
                    str(row["class"]),
                    *(_share(part["recognized"]) for part in (row, reference)),
                    *(_share(part["diversity"]) for part in (row, reference)),
                )
                for row, reference in by_class
            ],
        ),
        *(page.captioned_picture(file, pictures[file], caption) for file, caption in CAPTIONS.items()),
        page.heading("Settings"),
        page.table(("setting", "value"), settings),
    ]
    return page.render(recipe.name, parts)


def _measures(numbers: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """The rows of the table of measures."""
    generated, reference, nearest = numbers["generated"], numbers["training_rows"], numbers["nearest"]
    pair = generated, reference
    yield "recognized as their class", *(_share(part["recognized"]) for part in pair)
    yield "Fréchet distance of the features (0: equal)", *(f"{part['frechet_distance']:.2f}" for part in pair)
    yield "precision: share among the real features", *(f"{part['precision']:.3f}" for part in pair)
    yield "recall: share of real rows among their features", *(f"{part['recall']:.3f}" for part in pair)
    for statistic in ("median", "least"):
        values = [f"{nearest[name][statistic]:.2f}" for name in ("generated", "held_out_rows")]
        yield f"{statistic} distance from the nearest training row (last column: of held-out rows)", *values


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
