"""explore: what the data look like, in pictures and on one page; nothing is trained."""

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline import artifacts, exploration, page
from pipeline.pictures import captions
from pipeline.pictures import data as pictures

LOOK_ALIKES = ((3, 8), (4, 9), (7, 9), (1, 7), (3, 5))  # the pairs of digits that networks mistake most
SHOWN = 5  # pairs in a line of a picture


def space(job):
    """Bytes that `run` writes at most, beside pictures: two float64 a row, and a line for each copy."""
    return 64 * sum(len(np.load(path, mmap_mode="r")) for path in job.paths.values())


def run(job):
    images = np.load(job.paths["prepare/train_images.npy"], mmap_mode="r")
    labels = np.load(job.paths["prepare/train_labels.npy"])
    test = np.load(job.paths["prepare/test_images.npy"], mmap_mode="r")
    made, numbers = {}, {"rows": len(images), "test_rows": len(test)}
    with tqdm(total=100, desc="explore", unit="%", disable=None) as bar:
        of_each = exploration.by_class(images, labels)
        made["samples"] = pictures.samples(images, labels)
        made["counts"] = pictures.counts(of_each["rows"])
        made["means"] = pictures.means(of_each["mean"], of_each["deviation"])
        made["greys"] = pictures.greys(of_each["greys"], of_each["ink"])
        numbers["by_digit"] = [
            {"digit": digit, "rows": int(of_each["rows"][digit]), "ink": _number(of_each["ink"][digit])}
            for digit in range(10)
        ]
        bar.update(5)
        coordinates = _components(images, labels, made, numbers)
        bar.update(5)
        _embedding(job, coordinates, labels, made, numbers, bar)
        _alike(job, images, labels, test, coordinates, made, numbers)
        bar.update(20)
    for name, picture in made.items():
        artifacts.write(job.folder / f"{name}.png", picture)
    artifacts.write_json(job.folder / "explore.json", numbers)
    parts = [page.text(words) for words in _said(numbers)]
    for name, words in captions.DATA.items():
        picture = made[name.removesuffix(".png")]
        parts += [page.heading(captions.heading(name)), page.text(words), page.picture(picture, words)]
    artifacts.write(job.folder / "explore.html", page.page("The data", parts))
    job.call.say(f"explore: {' '.join(_said(numbers))}")
    return numbers


def _components(images, labels, made, numbers):
    fitted, coordinates = exploration.principal_components(images)
    ratios = fitted.explained_variance_ratio_
    made["variance"] = pictures.variance(ratios)
    made["components"] = pictures.components(fitted.components_.reshape(-1, *images.shape[1:]))
    made["pca_2d"] = pictures.scatter(coordinates[:, :2], labels, "The first two principal components", "component")
    made["pca_3d"] = pictures.scatter_3d(
        coordinates[:, :3], labels, "The first three principal components", "component"
    )
    numbers["variance_explained"] = {str(count): float(ratios[:count].sum()) for count in (2, 3, len(ratios))}
    return coordinates


def _embedding(job, coordinates, labels, made, numbers, bar):
    settings = job.settings.explore
    count = min(settings.rows or len(labels), len(labels))
    if not exploration.has_open_tsne() and count > exploration.SAMPLE:
        count = exploration.SAMPLE
        job.call.say(f"explore: t-SNE of {count:,} rows: for all of them, pip install -r requirements.txt (openTSNE)")
    before = bar.n

    def told(part):
        bar.update(int(before + 70 * part) - bar.n)

    places = exploration.embed(coordinates[:count], settings.seed, told)
    told(1)
    mine = labels[:count]
    spreads = exploration.spread(places, mine)
    accuracy = exploration.neighbour_accuracy(places, mine)
    words = f"t-SNE of {count:,} training rows: {accuracy:.1%} lie among their own digit"
    made["tsne"] = pictures.scatter(places, mine, words, "t-SNE")
    made["tsne_each"] = pictures.each_digit(places, mine, spreads, "t-SNE, a digit at a time")
    made["tsne_axes"] = pictures.along_axes(places, mine, "Rows of each digit along the axes of t-SNE", "t-SNE")
    numbers["tsne"] = {
        "rows": count,
        "neighbour_accuracy": accuracy,
        "spread": [_number(one) for one in spreads],
    }
    artifacts.write_array(job.folder / "tsne.npy", places.shape, places.dtype, [np.ascontiguousarray(places)])


def _alike(job, images, labels, test, coordinates, made, numbers):
    """Look-alikes of different digits, and copies, exact and near, within and between the tables."""
    groups = {}
    for one, other in LOOK_ALIKES:
        found = exploration.look_alikes(coordinates, labels, one, other, SHOWN)
        groups[f"{one} and {other}"] = [(images[i], f"row {i + 1}", images[j], f"row {j + 1}") for i, j in found]
    made["look_alikes"] = pictures.pairs(groups, "Nearest rows of different digits (rows of train.csv)")
    tables = {"train": images, "test": test}
    exact = {
        ("train", "train"): exploration.copies(images),
        ("test", "test"): exploration.copies(test),
        ("train", "test"): exploration.copies(images, test),
    }
    rows = [(one, int(i) + 1, other, int(j) + 1) for (one, other), found in exact.items() for i, j in found]
    text = pd.DataFrame(rows, columns=["table", "row", "other_table", "other_row"]).to_csv(index=False)
    artifacts.write(job.folder / "copies.csv", text.encode())
    numbers["copies"] = {f"{one}-{other}": len(found) for (one, other), found in exact.items()}
    groups = {}
    for name, (one, other) in {"train": ("train", "train"), "test, train": ("test", "train")}.items():
        left, right = tables[one], tables[other]
        partners, distances = exploration.nearest(left, None if one == other else right)
        near = [
            i for i in np.argsort(distances, kind="stable") if distances[i] > 0 and (one != other or i < partners[i])
        ]
        groups[name] = [
            (left[i], f"{one} {i + 1}", right[partners[i]], f"{other} {partners[i] + 1}") for i in near[:SHOWN]
        ]
        numbers[f"nearest_{one}_{other}"] = [
            {one: int(i) + 1, f"nearest_{other}": int(partners[i]) + 1, "distance": float(distances[i])}
            for i in near[:SHOWN]
        ]
    made["near_copies"] = pictures.pairs(groups, "The nearest pairs of rows that are not equal")


def _said(numbers):
    """The page's first sentences."""
    ink = {one["digit"]: one["ink"] for one in numbers["by_digit"] if one["ink"] is not None}
    least, most = min(ink, key=ink.get), max(ink, key=ink.get)
    copies = numbers["copies"]
    yield f"{numbers['rows']:,} training rows and {numbers['test_rows']:,} test rows."
    yield f"The digit with the least ink is {least} ({ink[least]:.1%} of full), with the most {most} ({ink[most]:.1%})."
    yield (
        f"Exact copies: {copies['train-train']} training rows of an earlier one, {copies['test-test']} test rows of an "
        f"earlier one, {copies['train-test']} test rows of a training row."
    )
    found = numbers["tsne"]
    yield f"In t-SNE, {found['neighbour_accuracy']:.1%} of {found['rows']:,} rows lie among their own digit."


def _number(value):
    return None if np.isnan(value) else float(value)
