"""`--stage explore`: the numbers against plain loops, the pictures and the page against what must be in them."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from scipy.spatial.distance import cdist

from pipeline import exploration
from pipeline.pictures import data as pictures
from pipeline.stages import STAGES
from tests.conftest import SHORT, digits_28

IMAGES, LABELS = digits_28(600)
WORDS = (*SHORT, "--set", "explore.rows=60")


def test_by_class_is_a_plain_loop():
    found = exploration.by_class(IMAGES, LABELS)
    for digit in range(10):
        mine = [image for image, label in zip(IMAGES, LABELS, strict=True) if label == digit]
        assert found["rows"][digit] == len(mine)
        assert np.allclose(found["mean"][digit], sum(image.astype(float) for image in mine) / len(mine))
        assert np.allclose(found["deviation"][digit], np.std(mine, axis=0))
        assert found["greys"][digit].sum() == 784 * len(mine)
        for grey in (0, 15, 240):
            assert found["greys"][digit][grey] == sum(int((image == grey).sum()) for image in mine)
        assert found["ink"][digit] == pytest.approx(np.mean([image.mean() / 255 for image in mine]))


def test_a_digit_without_rows():
    kept = LABELS != 3
    found = exploration.by_class(IMAGES[kept], LABELS[kept])
    assert found["rows"][3] == 0 and np.isnan(found["ink"][3]) and np.isfinite(np.delete(found["ink"], 3)).all()
    for picture in (
        pictures.samples(IMAGES[kept], LABELS[kept]),
        pictures.means(found["mean"], found["deviation"]),
        pictures.greys(found["greys"], found["ink"]),
    ):
        assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [600, 40])  # more rows than pixels have rank, and fewer than components
def test_components_are_singular_vectors(count):
    fitted, coordinates = exploration.principal_components(IMAGES[:count], 50)
    pixels = IMAGES[:count].reshape(count, -1) / 255.0
    left, sizes, _ = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    kept = min(50, count)
    shares = sizes**2 / (sizes**2).sum()
    assert np.allclose(fitted.explained_variance_ratio_, shares[:kept], atol=1e-5)
    for column in range(3):
        expected = left[:, column] * sizes[column]
        assert np.allclose(np.abs(coordinates[:, column]), np.abs(expected), atol=1e-3)


def test_t_sne_keeps_neighbours_and_is_repeatable():
    _, coordinates = exploration.principal_components(IMAGES[:250])
    told = []
    places = exploration.embed(coordinates, 0, told.append)
    assert places.shape == (250, 2) and exploration.neighbour_accuracy(places, LABELS[:250]) > 0.85
    assert told == sorted(told) and told[-1] == 1.0
    assert np.array_equal(places, exploration.embed(coordinates, 0))


def test_without_open_tsne_a_sample_does(monkeypatch, command, finished):
    monkeypatch.setattr(exploration, "has_open_tsne", lambda: False)
    monkeypatch.setattr(exploration, "SAMPLE", 150)
    run = command("--stage", "explore", *SHORT, "--workspace", finished)
    assert run.code == 0 and "t-SNE of 150 rows" in run.out
    assert np.load(finished / "data/explore/tsne.npy").shape == (150, 2)


def test_spread_and_neighbours_are_plain_loops():
    chance = np.random.default_rng(0)
    places, labels = chance.normal(size=(80, 2)), chance.integers(0, 4, 80)
    spreads = exploration.spread(places, labels)
    for digit in range(4):
        mine = places[labels == digit]
        middle = mine.mean(0)
        squares = [(x - middle[0]) ** 2 + (y - middle[1]) ** 2 for x, y in mine]
        assert spreads[digit] == pytest.approx(np.sqrt(np.mean(squares)))
    assert np.isnan(spreads[4:]).all()
    right = 0
    for at in range(80):
        order = sorted((j for j in range(80) if j != at), key=lambda j: np.linalg.norm(places[at] - places[j]))[:5]
        votes = [labels[j] for j in order]
        most = max(votes.count(digit) for digit in votes)
        right += next(digit for digit in votes if votes.count(digit) == most) == labels[at]
    assert exploration.neighbour_accuracy(places, labels) == right / 80


def test_look_alikes_are_the_nearest():
    _, coordinates = exploration.principal_components(IMAGES)
    found = exploration.look_alikes(coordinates, LABELS, 3, 8, 4)
    distances = cdist(coordinates[LABELS == 3], coordinates[LABELS == 8])
    one, other = np.unravel_index(distances.argmin(), distances.shape)
    assert found[0].tolist() == [np.flatnonzero(LABELS == 3)[one], np.flatnonzero(LABELS == 8)[other]]
    assert len(set(found[:, 1])) == len(found) == 4
    assert (LABELS[found[:, 0]] == 3).all() and (LABELS[found[:, 1]] == 8).all()
    assert len(exploration.look_alikes(coordinates, np.zeros(600, np.uint8), 3, 8, 4)) == 0


def test_copies_and_nearest():
    images = np.concatenate([IMAGES[:50], IMAGES[[3, 7, 3]]])
    assert exploration.copies(images).tolist() == [[3, 50], [7, 51], [3, 52]]
    assert exploration.copies(IMAGES[:5], IMAGES[[4, 9, 1]]).tolist() == [[4, 0], [1, 2]]
    assert exploration.copies(IMAGES[:5], IMAGES[10:12]).shape == (0, 2)
    flat = IMAGES.reshape(600, -1).astype(float)
    indices, distances = exploration.nearest(IMAGES[:40], IMAGES[40:90])
    away = cdist(flat[:40], flat[40:90]) / 28
    assert np.allclose(distances, away.min(1), atol=1e-3) and np.allclose(away[range(40), indices], away.min(1))
    indices, distances = exploration.nearest(IMAGES[:90])
    away = cdist(flat[:90], flat[:90]) / 28 + np.diag(np.full(90, np.inf))
    assert np.allclose(distances, away.min(1), atol=1e-3)


def test_blocks_change_nothing(monkeypatch):
    whole = exploration.nearest(IMAGES[:90])
    monkeypatch.setattr(exploration, "BLOCK", 7)
    assert all(np.array_equal(one, two) for one, two in zip(whole, exploration.nearest(IMAGES[:90]), strict=True))


@pytest.fixture
def explored(command, finished):
    run = command("--stage", "explore", *WORDS, "--workspace", finished)
    assert run.code == 0, run.err
    return finished, run


def test_the_stage_leaves_pictures_numbers_and_a_page(command, explored):
    workspace, run = explored
    folder = workspace / "data/explore"
    for name in STAGES["explore"].outputs:
        assert (folder / name).exists()
        if name.endswith(".png"):
            height, width, _ = imread(folder / name).shape
            assert 250 < height < 1200 and 500 < width < 1300
    numbers = json.loads((folder / "explore.json").read_text())
    labels = np.load(workspace / "data/prepared/arrays/train_labels.npy")
    assert [one["rows"] for one in numbers["by_digit"]] == np.bincount(labels, minlength=10).tolist()
    places = np.load(folder / "tsne.npy")
    assert numbers["tsne"]["neighbour_accuracy"] == exploration.neighbour_accuracy(places, labels[:60])
    html = (folder / "explore.html").read_text()
    assert html.count("<img") == sum(name.endswith(".png") for name in STAGES["explore"].outputs)
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html
    assert f"{len(labels):,} training rows" in html and f"{len(labels):,} training rows" in run.out
    assert (pd.read_csv(folder / "copies.csv").columns == ["table", "row", "other_table", "other_row"]).all()


def test_it_runs_when_asked_for_and_is_known_then(command, finished):
    words = (*WORDS, "--workspace", finished)
    assert "explore" not in command("--status", *words).out
    assert "explore" not in command("--stage", "all", *words, "--device", "cpu").out
    assert command("--stage", "explore", *words).code == 0
    assert "explore   fresh" in command("--status", *words).out
    assert "explore.rows 60 -> 50" in command("--status", *words, "--set", "explore.rows=50").out
    assert command("--clean", "--yes", "--workspace", finished).code == 0
    assert (finished / "data/explore/explore.html").exists()
    again = command("--stage", "explore", *words, "--set", "explore.rows=50")
    assert again.code == 0 and np.load(finished / "data/explore/tsne.npy").shape == (50, 2)


def test_copies_are_told_by_their_rows(command, finished):
    path = finished / "data/raw/train.csv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines, lines[6]]) + "\n")
    words = (*WORDS, "--workspace", finished)
    assert command("--stage", "all", *words, "--device", "cpu").code == 0
    assert command("--stage", "explore", *words).code == 0
    table = pd.read_csv(finished / "data/explore/copies.csv")
    assert table.to_dict("records") == [
        {"table": "train", "row": 7, "other_table": "train", "other_row": len(lines) + 1}
    ]


@pytest.mark.slow
def test_the_same_data_give_the_same_pictures(command, explored):
    workspace, _ = explored
    folder = workspace / "data/explore"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}
    assert command("--stage", "explore", *WORDS, "--workspace", workspace).code == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "context.json"}


@pytest.mark.parametrize(("rows", "code"), [(1, 2), (9, 2), (10, 0)])
def test_too_few_rows_for_tsne_are_refused(command, finished, rows, code):
    run = command("--stage", "explore", *SHORT, "--set", f"explore.rows={rows}", "--workspace", finished)
    assert run.code == code and run.err.count("\n") == (code > 0)
    assert not code or "explore.rows must be 0 (all rows) or at least 10" in run.err
